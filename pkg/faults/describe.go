package faults

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// process is what is known of a thread's process.
type process struct {
	pid  int
	name string
}

// describe says who calls, and about what.
func (s *session) describe(n notification) Call {
	k := calls[int(n.nr)]
	p := s.process(n.tid)
	var about []string
	for _, i := range k.paths {
		about = append(about, text(n.tid, n.args[i]))
	}
	for _, i := range k.fds {
		about = append(about, s.file(n.tid, p.pid, int32(n.args[i])))
	}
	switch {
	case k.addr != 0:
		about = append(about, address(n.tid, n.args[k.addr], n.args[k.addr+1]))
	case n.nr == unix.SYS_SOCKET:
		about = append(about, socket(int(n.args[0]), int(n.args[2])))
	case n.nr == unix.SYS_EXECVE:
		defer delete(s.processes, n.tid) // the name changes
	}
	return Call{PID: p.pid, Program: p.name, Child: p.pid != s.program.Pid, Name: k.name, Detail: strings.Join(about, ", ")}
}

func (s *session) process(tid uint32) process {
	if p, ok := s.processes[tid]; ok {
		return p
	}
	p := process{pid: int(tid)}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid)) // it may have died
	for line := range strings.Lines(string(status)) {
		if id, ok := strings.CutPrefix(line, "Tgid:"); ok {
			_, _ = fmt.Sscan(id, &p.pid)
			break
		}
	}
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.pid))
	p.name = strings.TrimSpace(string(name))
	s.processes[tid] = p
	return p
}

// text reads a string of the caller's memory, page by page.
func text(tid uint32, at uint64) string {
	const page = 4096
	var out []byte
	for len(out) < page && at != 0 {
		b := make([]byte, page-at%page)
		n, err := read(tid, at, b)
		if err != nil {
			break
		}
		if end := bytes.IndexByte(b[:n], 0); end >= 0 {
			return string(append(out, b[:end]...))
		}
		out, at = append(out, b[:n]...), at+uint64(n)
	}
	return string(out)
}

func read(tid uint32, at uint64, b []byte) (int, error) {
	return unix.ProcessVMReadv(int(tid), []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
}

// file says what a file descriptor is.
func (s *session) file(tid uint32, pid int, fd int32) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, fd))
	if err != nil {
		return fmt.Sprintf("fd %d", fd)
	}
	if strings.HasPrefix(link, "pipe:") {
		return "pipe"
	}
	if !strings.HasPrefix(link, "socket:") {
		return link
	}
	if _, ok := s.sockets[link]; !ok {
		s.sockets[link] = "socket " + socketOf(pid, int(fd))
	}
	return s.sockets[link]
}

// socketOf asks the socket itself.
func socketOf(pid, fd int) string {
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(p)
	own, err := unix.PidfdGetfd(p, fd, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(own)
	domain, _ := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_DOMAIN)
	protocol, _ := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return socket(domain, protocol)
}

func socket(domain, protocol int) string {
	name := map[int]string{unix.AF_UNIX: "unix", unix.AF_INET: "inet", unix.AF_INET6: "inet6", unix.AF_NETLINK: "netlink"}[domain]
	return fmt.Sprint(name, " ", protocol)
}

// address reads a socket address.
func address(tid uint32, at, length uint64) string {
	b := make([]byte, min(length, unix.SizeofSockaddrAny))
	if len(b) < 2 {
		return ""
	}
	if n, err := read(tid, at, b); err != nil || n < len(b) {
		return ""
	}
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_UNIX:
		path, _, _ := bytes.Cut(b[2:], []byte{0})
		return string(path)
	case family == unix.AF_INET && len(b) >= 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:])).String()
	case family == unix.AF_INET6 && len(b) >= 24:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:])).String()
	}
	return ""
}

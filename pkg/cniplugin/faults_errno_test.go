//go:build faults

package cniplugin_test

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/faults"
)

// errnos are with what each call may plausibly fail. What a socket's call fails with depends on the socket.
var errnos = map[string][]unix.Errno{
	"openat":            {unix.EMFILE, unix.EACCES, unix.ENOMEM, unix.EINTR, unix.ENOSPC, unix.EIO},
	"open":              {unix.EMFILE, unix.EACCES, unix.ENOMEM},
	"read":              {unix.EIO, unix.EINTR},
	"pread64":           {unix.EIO, unix.EINTR},
	"write":             {unix.ENOSPC, unix.EIO, unix.EINTR, unix.EDQUOT},
	"getdents64":        {unix.EIO, unix.ENOMEM},
	"newfstatat":        {unix.EACCES, unix.EIO, unix.ENOMEM},
	"stat":              {unix.EACCES, unix.ENOMEM},
	"access":            {unix.EACCES},
	"faccessat2":        {unix.EACCES, unix.EIO},
	"readlinkat":        {unix.EACCES, unix.EIO},
	"mkdirat":           {unix.ENOSPC, unix.EACCES, unix.EROFS},
	"renameat":          {unix.ENOSPC, unix.EBUSY, unix.EIO, unix.EROFS},
	"unlinkat":          {unix.EBUSY, unix.EIO, unix.EROFS},
	"flock":             {unix.EINTR, unix.ENOLCK, unix.EWOULDBLOCK},
	"setns":             {unix.EPERM, unix.ENOMEM},
	"pipe2":             {unix.EMFILE, unix.ENFILE},
	"clone":             {unix.EAGAIN, unix.ENOMEM, unix.EPERM},
	"vfork":             {unix.EAGAIN, unix.ENOMEM},
	"execve":            {unix.ENOMEM, unix.EACCES, unix.EIO, unix.ETXTBSY},
	"pidfd_send_signal": {unix.EPERM},
	"socket":            {unix.EMFILE, unix.ENOBUFS, unix.ENOMEM, unix.EPERM},
	"socketpair":        {unix.EMFILE, unix.ENOMEM},

	"netlink write":      {unix.ENOMEM, unix.ENOBUFS, unix.EINTR, unix.EPERM, unix.EAGAIN},
	"netlink sendto":     {unix.ENOMEM, unix.ENOBUFS, unix.EINTR, unix.EPERM, unix.EAGAIN},
	"netlink sendmsg":    {unix.ENOMEM, unix.ENOBUFS, unix.EINTR, unix.EPERM, unix.EAGAIN},
	"netlink read":       {unix.ENOMEM, unix.ENOBUFS, unix.EINTR},
	"netlink recvfrom":   {unix.ENOMEM, unix.ENOBUFS, unix.EINTR},
	"netlink recvmsg":    {unix.ENOMEM, unix.ENOBUFS, unix.EINTR},
	"netlink bind":       {unix.ENOMEM, unix.EADDRINUSE},
	"netlink setsockopt": {unix.ENOMEM, unix.ENOBUFS, unix.EPERM, unix.ENOPROTOOPT},

	// After EINTR the kernel goes on connecting, which can't be had here.
	"socket connect":    {unix.ECONNREFUSED, unix.EAGAIN, unix.ETIMEDOUT, unix.ENETUNREACH, unix.EACCES},
	"socket write":      {unix.EPIPE, unix.ECONNRESET, unix.EINTR, unix.ENOBUFS},
	"socket read":       {unix.ECONNRESET, unix.ETIMEDOUT, unix.EINTR, unix.ENOMEM},
	"socket sendmsg":    {unix.EPIPE, unix.ENOBUFS, unix.EINTR},
	"socket setsockopt": {unix.ENOMEM, unix.EPERM, unix.ENOPROTOOPT, unix.EBUSY},
	"socket getsockopt": {unix.ENOMEM, unix.EPERM, unix.ENOPROTOOPT, unix.EAGAIN},
}

// errnosOf are those of a call; none for one that the table does not have.
func errnosOf(c faults.Call) []unix.Errno {
	prefix := ""
	switch {
	case c.Name == "socket" || c.Name == "socketpair":
	case strings.HasPrefix(c.Detail, "socket netlink"):
		prefix = "netlink "
	case strings.HasPrefix(c.Detail, "socket "):
		prefix = "socket "
	}
	if c.Child && c.Detail == "pipe" { // its input and output, which it reads and writes without handling any signal
		return nil
	}
	plausible := errnos[prefix+c.Name]
	switch {
	case c.Detail == "pipe": // no device is below it
		plausible = slices.DeleteFunc(slices.Clone(plausible), func(e unix.Errno) bool { return e != unix.EINTR })
	case strings.HasPrefix(c.Detail, "/proc/"): // no signal interrupts it
		plausible = slices.DeleteFunc(slices.Clone(plausible), func(e unix.Errno) bool { return e == unix.EINTR })
	}
	return plausible
}

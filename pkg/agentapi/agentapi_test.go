package agentapi

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// listen listens at a socket whose queue holds few connections.
func listen(t *testing.T, queue int) (path string, l net.Listener) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agentapi") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, queue)); err != nil {
		t.Fatal(err)
	}
	if l, err = net.FileListener(file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path, l
}

// serve answers everybody who asks, one after the other.
func serve(l net.Listener) {
	for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
		var r Request
		_ = json.NewDecoder(conn).Decode(&r)
		_ = json.NewEncoder(conn).Encode(Answer{ConfigAbsent: "here"})
		conn.Close()
	}
}

func TestAFullQueueIsWaitedFor(t *testing.T) {
	t.Parallel()
	path, l := listen(t, 1)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if a, err := Call(t.Context(), path, Request{Ready: true}, time.Minute); err != nil || a.ConfigAbsent != "here" {
				t.Errorf("got %+v, %v", a, err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond) // the queue is full by then, and nobody accepts yet
	go serve(l)
	all.Wait()
}

func TestAQueueThatStaysFullIsNobody(t *testing.T) {
	t.Parallel()
	path, _ := listen(t, 0)
	first, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	began := time.Now()
	_, err = Call(t.Context(), path, Request{Ready: true}, time.Minute)
	if !errors.Is(err, ErrNobody) || !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("got error %v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it waited for %s", took)
	}
	if _, err := Dial(t.Context(), path, time.Now().Add(10*time.Millisecond)); !errors.Is(err, ErrNobody) {
		t.Errorf("dialled: %v", err)
	}
}

func TestWhoDoesNotAnswerIsNobodyInTime(t *testing.T) {
	t.Parallel()
	path, _ := listen(t, 8)
	if _, err := Call(t.Context(), path, Request{Ready: true}, 20*time.Millisecond); !errors.Is(err, ErrNobody) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got error %v", err)
	}
	if _, err := Call(t.Context(), path+".gone", Request{Ready: true}, time.Hour); !errors.Is(err, ErrNobody) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got error %v", err)
	}
}

// An answer that nobody reads would make the kernel reset the connection, which the agent takes for a malformed request.
func TestTheAgentSeesAReportAndThenTheEnd(t *testing.T) {
	t.Parallel()
	path, l := listen(t, 1)
	answered, end := make(chan error, 1), make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			end <- err
			return
		}
		defer conn.Close()
		requests := json.NewDecoder(conn)
		_ = requests.Decode(new(Request))
		answered <- json.NewEncoder(conn).Encode(Answer{})
		end <- requests.Decode(new(Request))
	}()
	c, err := Dial(t.Context(), path, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Tell(Report{Outcome: "programmed"}, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the answer: got %v, want %v", err, syscall.EPIPE)
	}
	c.Close()
	if err := <-end; !errors.Is(err, io.EOF) {
		t.Errorf("the end: got %v, want %v", err, io.EOF)
	}
}

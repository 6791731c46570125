package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/agentapi"
)

// peerUID is who may ask.
const peerUID = 0

// mostAtOnce is how many connections are served side by side; more wait in the socket's queue. It is more than a node starts
// pods at once: each may wait for the API server (see mostLive), and answers from the cache must not wait for those.
const mostAtOnce = 512

// socketState is the socket as readiness sees it.
type socketState struct {
	mu   sync.Mutex
	file fs.FileInfo // nil while nothing is served
}

func (s *socketState) set(file fs.FileInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file = file
}

// at reports whether the socket at path is the one that is served.
func (s *socketState) at(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := os.Lstat(path)
	return err == nil && s.file != nil && os.SameFile(now, s.file)
}

// keepSocket serves the socket until ctx ends, and makes it anew if somebody deletes it. One that another agent has put in
// its place is left alone: the younger agent serves.
func (a *Agent) keepSocket(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := a.serveSocket(ctx); err != nil {
			return err
		}
	}
	return nil
}

// serveSocket serves the socket until ctx ends or the socket's file is gone.
func (a *Agent) serveSocket(ctx context.Context) error {
	l, err := listenSocket(ctx, a.conf.Socket)
	if err != nil {
		return err
	}
	file, err := os.Lstat(a.conf.Socket)
	if err != nil {
		l.Close() //nolint:errcheck // the other error counts
		return fmt.Errorf("serve socket: %w", err)
	}
	a.socket.set(file)
	defer func() {
		if a.socket.at(a.conf.Socket) {
			os.Remove(a.conf.Socket) //nolint:errcheck // nobody answers at it any more
		}
		a.socket.set(nil)
	}()
	serving, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- a.Serve(serving, l) }()
	for {
		select {
		case err := <-ended:
			return err
		case <-time.After(a.timing.check):
		}
		if _, err := os.Lstat(a.conf.Socket); errors.Is(err, fs.ErrNotExist) {
			a.log.Warn("the socket was deleted; it is made anew", "socket", a.conf.Socket)
			stop()
			return <-ended
		}
	}
}

// listenSocket listens at path, mode 0600 from the first moment, in its folder, mode 0700. What an agent before has left
// there is replaced without a moment in which there is no socket. Anything but a socket is left alone, as an error.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := prepareSocket(path); err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		if err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmod
	}}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	l, err := config.Listen(ctx, "unix", temporary)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // there may be another's by then
	if err := os.Rename(temporary, path); err != nil {
		return nil, errors.Join(fmt.Errorf("make socket: %w", err), l.Close(), os.Remove(temporary))
	}
	return l, nil
}

func prepareSocket(path string) error {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(folder, 0o700); err != nil { // a kubelet that makes a hostPath makes it 0755
		return err
	}
	there, err := os.Lstat(path)
	if err == nil && there.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and no socket", path)
	}
	return nil
}

// Serve answers at the listener, which must be a Unix socket's, until ctx ends. It closes the listener and returns when
// the last request is done; an error is one of the listener.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })() //nolint:errcheck // closing is all there is to do
	defer l.Close()                                      //nolint:errcheck
	var requests sync.WaitGroup
	defer requests.Wait()
	free := make(chan struct{}, mostAtOnce)
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serve socket: %w", err)
		case err != nil: // too many open files, or the peer has gone already
			pause(ctx, 50*time.Millisecond)
			continue
		}
		free <- struct{}{}
		requests.Go(func() {
			defer func() { <-free }()
			a.handle(ctx, conn)
		})
	}
}

// handle serves the requests of a connection, one after the other: a plugin's lookup, and the report of what came of it.
func (a *Agent) handle(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })() //nolint:errcheck // then the request's own deadline holds
	if err := checkPeer(conn); err != nil {
		a.log.Warn("a request was refused", "error", err.Error())
		return
	}
	requests := newRequests(conn)
	for first := true; ; first = false {
		if err := conn.SetReadDeadline(time.Now().Add(a.timing.request)); err != nil || ctx.Err() != nil {
			return
		}
		request, err := requests.next()
		if !first && (errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded)) {
			return
		}
		if !a.handleOne(ctx, conn, request, err) {
			return
		}
	}
}

// handleOne answers a request, which malformed may be wrong, and reports whether another may follow.
func (a *Agent) handleOne(ctx context.Context, conn net.Conn, request agentapi.Request, malformed error) bool {
	answer := agentapi.Answer{}
	if malformed == nil {
		answer = a.answer(ctx, request, conn)
	} else {
		answer.Error = "the agent does not understand the request: " + malformed.Error()
		a.metrics.malformed.Inc()
	}
	if err := conn.SetWriteDeadline(time.Now().Add(a.timing.request)); err != nil {
		return false
	}
	err := json.NewEncoder(conn).Encode(answer)
	if err != nil && !errors.Is(err, unix.EPIPE) { // the plugin has hung up: it had no more time
		a.log.Warn("an answer could not be sent", "error", err.Error())
	}
	return err == nil && malformed == nil
}

// whileThere returns a context that ends when the peer hangs up, as a plugin does that has no more time, and what to call when
// that no longer matters.
func whileThere(ctx context.Context, conn net.Conn) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	conn.SetReadDeadline(time.Time{}) //nolint:errcheck // then the lookup ends with its request's time
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		io.Copy(io.Discard, conn) //nolint:errcheck // whatever ends it, the peer has gone
	}()
	return ctx, func() {
		conn.SetReadDeadline(time.Now()) //nolint:errcheck // else the peer or the agent ends it
		cancel()
		<-ended
	}
}

// checkPeer fails unless root of this host is on the other side.
func checkPeer(conn net.Conn) error {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("the connection is a %T, no Unix socket's", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("find out who asks: %w", err)
	}
	var peer *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { peer, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return fmt.Errorf("find out who asks: %w", err)
	}
	if credErr != nil {
		return fmt.Errorf("find out who asks: %w", credErr)
	}
	if peer.Uid != peerUID {
		return fmt.Errorf("UID %d (PID %d) may not ask: only UID %d may", peer.Uid, peer.Pid, peerUID)
	}
	return nil
}

// requests reads a connection's requests.
type requests struct {
	limited *io.LimitedReader
	json    *json.Decoder
}

func newRequests(from io.Reader) requests {
	limited := &io.LimitedReader{R: from}
	return requests{limited, json.NewDecoder(limited)}
}

// next reads one request that makes sense. The error is io.EOF if there is none.
func (q requests) next() (agentapi.Request, error) {
	q.limited.N = agentapi.MaxLine + 1
	var r agentapi.Request
	err := q.json.Decode(&r)
	if q.limited.N <= 0 {
		return agentapi.Request{}, fmt.Errorf("it is longer than %d bytes", agentapi.MaxLine)
	}
	if err != nil {
		return agentapi.Request{}, err
	}
	return r, checkRequest(r)
}

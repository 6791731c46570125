// Package socket serves the agent's Unix socket: it keeps the socket in its place, lets root alone ask, and reads requests and
// writes answers. What the answers are is its user's.
package socket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/hostfile"
)

// maxConnections is how many connections are served side by side; more wait in the socket's queue. It is more than a node starts
// pods at once: each may wait for the API server, and answers from the cache must not wait for those.
const maxConnections = 512

// Server serves a socket. Its fields don't change once it runs; its methods are safe for concurrent use.
type Server struct {
	// Path is the socket's. Its folder is made, with mode 0700.
	Path string
	// Answer answers a valid request. Its context ends when the peer hangs up.
	Answer func(context.Context, agentapi.Request) agentapi.Answer
	// Malformed is called for each request that is not valid.
	Malformed func()
	// Patience is how long a peer may take to send a request, the first or the next, and to take an answer; Check is how often
	// the server looks whether somebody has deleted the socket.
	Patience, Check time.Duration
	Log             *slog.Logger

	mu     sync.Mutex
	file   fs.FileInfo // nil while nothing is served
	failed error       // why
}

func (s *Server) set(file fs.FileInfo, failed error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file, s.failed = file, failed
}

// Missing says why the server does not answer at its path, "" if it does.
func (s *Server) Missing() string {
	if s.Serving() {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.failed.Error()
	}
	return "nobody answers at " + s.Path
}

// Serving reports whether the server answers at its path: another agent may have taken it.
func (s *Server) Serving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := os.Lstat(s.Path)
	return err == nil && s.file != nil && os.SameFile(now, s.file)
}

// Run serves the socket until ctx ends, and makes it again if somebody deletes it. It leaves a socket alone that another agent
// has put in its place: the younger agent serves. If it can't make the socket, it tries again.
func (s *Server) Run(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := s.runOnce(ctx)
		if err == nil {
			said = ""
			continue
		}
		err = hostfile.Advise(err)
		s.set(nil, err)
		if err.Error() != said {
			said = err.Error()
			s.Log.Error("socket can't be served; trying again", "event", "socket-failed", "socket", s.Path, "error", said)
		}
		select {
		case <-ctx.Done():
		case <-time.After(s.Check):
		}
	}
}

// runOnce serves the socket until ctx ends or the socket's file is gone.
func (s *Server) runOnce(ctx context.Context) error {
	l, err := listen(ctx, s.Path)
	if err != nil {
		return err
	}
	file, err := os.Lstat(s.Path)
	if err != nil {
		l.Close() //nolint:errcheck // the other error counts
		return fmt.Errorf("serve socket: %w", err)
	}
	s.set(file, nil)
	defer func() {
		if s.Serving() {
			os.Remove(s.Path) //nolint:errcheck // nobody answers at it any more
		}
		s.set(nil, nil)
	}()
	serving, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.serve(serving, l) }()
	for {
		select {
		case err := <-ended:
			return err
		case <-time.After(s.Check):
		}
		if _, err := os.Lstat(s.Path); errors.Is(err, fs.ErrNotExist) {
			s.Log.Warn("socket was deleted; making it again", "event", "socket-deleted", "socket", s.Path)
			stop()
			return <-ended
		}
	}
}

// serve answers at the listener until ctx ends. It closes the listener and returns after the last request; an error is one of
// the listener.
func (s *Server) serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })() //nolint:errcheck // closing is all there is to do
	defer l.Close()                                      //nolint:errcheck
	var connections sync.WaitGroup
	defer connections.Wait()
	free := make(chan struct{}, maxConnections)
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
			time.Sleep(50 * time.Millisecond)
			continue
		}
		free <- struct{}{}
		connections.Go(func() {
			defer func() { <-free }()
			defer conn.Close()
			s.converse(ctx, conn.(*net.UnixConn))
		})
	}
}

// converse serves a connection's requests one after the other: a plugin's lookup, and then its report.
func (s *Server) converse(ctx context.Context, conn *net.UnixConn) {
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })() //nolint:errcheck // then Patience holds
	if err := checkPeer(conn); err != nil {
		s.Log.Warn("peer at the socket refused", "event", "peer-refused", "error", err.Error())
		return
	}
	requests := newRequests(conn)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(s.Patience)); err != nil || ctx.Err() != nil {
			return
		}
		request, err := requests.next()
		if errors.Is(err, errNoMore) {
			return
		}
		var answer agentapi.Answer
		if err == nil {
			answer = s.answer(ctx, conn, request)
		} else {
			s.Malformed()
			answer.Error = "the agent does not understand the request: " + err.Error()
		}
		if !s.send(conn, answer) || err != nil {
			return
		}
	}
}

func (s *Server) answer(ctx context.Context, conn *net.UnixConn, r agentapi.Request) agentapi.Answer {
	ctx, done := untilHangUp(ctx, conn)
	defer done()
	return s.Answer(ctx, r)
}

func (s *Server) send(conn net.Conn, answer agentapi.Answer) bool {
	err := conn.SetWriteDeadline(time.Now().Add(s.Patience))
	if err == nil {
		err = json.NewEncoder(conn).Encode(answer)
	}
	if err != nil && !errors.Is(err, unix.EPIPE) { // EPIPE: a plugin doesn't wait for the answer to a report
		s.Log.Warn("answer not sent", "event", "answer-failed", "error", err.Error())
	}
	return err == nil
}

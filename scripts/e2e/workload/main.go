// Command workload is what runs in the pods of the end-to-end tests: the pause container, an application that is dialed and
// dials, a sidecar proxy that answers each connection with where it was going, and a mesh's injector.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/detour-cni/detour/pkg/apitest/injector"
	"github.com/detour-cni/detour/pkg/nettest"
)

const usage = `usage:
  workload pause
  workload proxy PORT...             answer as a proxy at each port
  workload serve NAME PORT...        answer "NAME PORT" at each port
  workload app PORT... ADDR...       serve as app at each port, and dial each address every half second
  workload dial ADDR...              dial each address once, 0.1 s apart, until it answers or 10 s have passed
  workload inject ADDR INIT SIDECAR  serve a webhook that adds the two containers, YAML, to pods; print its certificate

Each dial is a line on standard output: ADDR: ANSWER, or ADDR: error: REASON`

// Of each dial, of the pause between them, of all attempts of workload dial.
const (
	dialTime  = 2 * time.Second
	pauseTime = 500 * time.Millisecond
	retryTime = 100 * time.Millisecond
	giveUp    = 10 * time.Second
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := work(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "workload: "+err.Error())
		return 1
	}
	return 0
}

func work(ctx context.Context, args []string) error {
	command, args := append(args, "")[0], args[min(1, len(args)):]
	switch {
	case command == "pause":
	case command == "proxy":
		if err := listen(ctx, args, nettest.Proxy); err != nil {
			return err
		}
	case command == "serve" && len(args) > 0:
		if err := listen(ctx, args[1:], nettest.Named(args[0])); err != nil {
			return err
		}
	case command == "app":
		var ports, addrs []string
		for _, arg := range args {
			if strings.Contains(arg, ":") {
				addrs = append(addrs, arg)
			} else {
				ports = append(ports, arg)
			}
		}
		if err := listen(ctx, ports, nettest.Named("app")); err != nil {
			return err
		}
		dialAgainAndAgain(ctx, addrs)
	case command == "dial":
		return dialUntilAnswered(ctx, args)
	case command == "inject" && len(args) == 3:
		if err := inject(args[0], injector.Webhook{Init: args[1], Sidecar: args[2]}); err != nil {
			return err
		}
	default:
		return errors.New(usage)
	}
	<-ctx.Done()
	return nil
}

func dialAgainAndAgain(ctx context.Context, addrs []string) {
	for ctx.Err() == nil && len(addrs) > 0 {
		for _, addr := range addrs {
			answer, err := dial(addr)
			report(addr, answer, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pauseTime):
		}
	}
}

func dialUntilAnswered(ctx context.Context, addrs []string) error {
	deadline := time.Now().Add(giveUp)
	for _, addr := range addrs {
		answer, err := dial(addr)
		for err != nil && time.Now().Before(deadline) && ctx.Err() == nil {
			report(addr, answer, err)
			time.Sleep(retryTime)
			answer, err = dial(addr)
		}
		report(addr, answer, err)
		if err != nil {
			return fmt.Errorf("dial %s: %w", addr, err)
		}
	}
	return nil
}

func report(addr, answer string, err error) {
	if err != nil {
		answer = "error: " + err.Error()
	}
	fmt.Printf("%s: %s\n", addr, answer)
}

// dial connects and returns the line that is answered.
func dial(addr string) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, dialTime)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(dialTime)); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// listen answers each connection to the ports with its banner, from now on.
func listen(ctx context.Context, ports []string, banner nettest.Banner) error {
	for _, text := range ports {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return fmt.Errorf("port %s: %w", text, err)
		}
		var config net.ListenConfig
		config.SetMultipathTCP(false) // which Go would use, and which rules for TCP aren't about
		socket, err := config.Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		go serve(socket, banner)
	}
	return nil
}

func serve(socket net.Listener, banner nettest.Banner) {
	for {
		conn, err := socket.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "workload: "+err.Error())
			os.Exit(1)
		}
		go func() {
			defer conn.Close()
			fmt.Fprintln(conn, banner(conn.(*net.TCPConn)))
			_, _ = io.Copy(conn, conn) // whoever stays gets back what it sends
		}()
	}
}

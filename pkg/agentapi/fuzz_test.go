package agentapi

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Whatever listens at the socket, the plugin gets an answer, or ErrNobody and no part of an answer.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"pod":{"metadata":{}},"config":{"kind":"MeshConfig"},"configAbsent":"here"}`, `{"error":"x","notFound":true}`, `{}`, `{"pod":`, `[]`,
		`{"pod":{}}{"pod":[]}`, "\n\n{}\n", `null`, ``, `HTTP/1.1 400 Bad Request`, strings.Repeat("[", 20_000), `{"notFound":1}`, `{"notFound":true,"error":1}`, `{"error":"\ud800"}`,
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, line []byte) {
		a, err := answered(t, dir, bytes.NewReader(line))
		if err != nil && (!errors.Is(err, ErrNobody) || !reflect.ValueOf(a).IsZero()) {
			t.Errorf("got %+v, %v", a, err)
		}
	})
}

// answered is what Call makes of a peer that sends what r has, and then nothing.
func answered(t *testing.T, dir string, r io.Reader) (Answer, error) {
	t.Helper()
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, r) // the caller may hang up
	}()
	return Call(t.Context(), dir+"/s", Request{Ready: true}, time.Minute)
}

func TestAnAnswerWithoutEndIsNobody(t *testing.T) {
	t.Parallel()
	endless := io.MultiReader(strings.NewReader(`{"error":"`), strings.NewReader(strings.Repeat("x", 4*MaxLine)), strings.NewReader(`"}`))
	if _, err := answered(t, t.TempDir(), endless); !errors.Is(err, ErrNobody) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got error %v", err)
	}
}

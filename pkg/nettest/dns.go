package nettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// ListenDNS answers real DNS queries by UDP and TCP, on port of all IPv4 and IPv6 addresses of the namespace: every name
// has one TXT record, txt, of at most 255 bytes.
func (p Process) ListenDNS(port uint16, txt string) (*Listener, error) {
	if len(txt) > 255 {
		return nil, fmt.Errorf("listen for DNS: a text of %d bytes is no TXT string", len(txt))
	}
	answer := func(query []byte) []byte {
		response, err := answerDNS(query, txt)
		if err != nil {
			return nil // only queries are answered
		}
		return response
	}
	return p.listen(port, udp(answer), tcp(nil, func(conn *net.TCPConn) {
		query, err := readFrame(conn)
		if err != nil {
			return
		}
		if response := answer(query); response != nil {
			_ = writeFrame(conn, response)
		}
	}))
}

func answerDNS(query []byte, txt string) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	if m.Response || len(m.Questions) != 1 {
		return nil, errors.New("not one question")
	}
	q := m.Questions[0]
	m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: m.RecursionDesired}, Questions: m.Questions}
	if q.Type == dnsmessage.TypeTXT {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
			Body:   &dnsmessage.TXTResource{TXT: []string{txt}},
		}}
	}
	return m.Pack()
}

// QueryDNS asks c.Destination for the TXT record of name, which ends with a dot, and returns its text. Errors are as
// with Ask; an answer to another question is an error too.
func (p Process) QueryDNS(c Call, name string) (string, error) {
	question := dnsmessage.Question{Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}
	var err error
	if question.Name, err = dnsmessage.NewName(name); err != nil {
		return "", fmt.Errorf("query %s: %w", name, err)
	}
	query := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(rand.Uint32()), RecursionDesired: true}, Questions: []dnsmessage.Question{question}}
	packed, err := query.Pack()
	if err != nil {
		return "", fmt.Errorf("query %s: %w", name, err)
	}
	var response []byte
	err = p.converse(c, func(conn net.Conn) (err error) {
		response, err = exchangeDNS(conn, c.Protocol, packed)
		return err
	})
	if err != nil {
		return "", err
	}
	text, err := readDNS(response, query)
	return text, wrap("query "+name, err)
}

func exchangeDNS(conn net.Conn, protocol Protocol, query []byte) ([]byte, error) {
	if protocol == TCP {
		if err := writeFrame(conn, query); err != nil {
			return nil, err
		}
		return readFrame(conn)
	}
	if err := send(conn, query); err != nil {
		return nil, err
	}
	response := make([]byte, maxDatagram)
	n, err := conn.Read(response)
	return response[:n], err
}

// readDNS returns the TXT record of a response to the query.
func readDNS(response []byte, query dnsmessage.Message) (string, error) {
	var m dnsmessage.Message
	if err := m.Unpack(response); err != nil {
		return "", err
	}
	if !m.Response || m.ID != query.ID || len(m.Questions) != 1 || m.Questions[0] != query.Questions[0] {
		return "", errors.New("the response is to another query")
	}
	if len(m.Answers) != 1 {
		return "", fmt.Errorf("%s with %d answers", m.RCode, len(m.Answers))
	}
	txt, ok := m.Answers[0].Body.(*dnsmessage.TXTResource)
	if !ok {
		return "", fmt.Errorf("the answer is of type %s", m.Answers[0].Header.Type)
	}
	return strings.Join(txt.TXT, ""), nil
}

// writeFrame and readFrame are DNS over TCP: each message after its length.
func writeFrame(w io.Writer, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}

func readFrame(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, message)
	return message, err
}

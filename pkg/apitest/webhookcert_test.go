//go:build kubeapi

package apitest

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/detour-cni/detour/pkg/webhook"
	"github.com/detour-cni/detour/pkg/webhook/certificate"
)

// quick are short lives: a certificate is renewed after 20 s, and the old one has 10 s then for a busy machine to make a new one.
var quick = certificate.Timing{Life: 30 * time.Second, Settle: 2 * time.Second, Check: 100 * time.Millisecond}

// second is the configuration of another replica.
func (s *hookScene) second() webhook.Config {
	c := s.conf
	c.Addr, c.MetricsAddr = freeAddress(s.t), freeAddress(s.t)
	return c
}

func (s *hookScene) secretPath() string {
	return "/api/v1/namespaces/" + s.namespace + "/secrets/" + webhookAccount
}

// secret returns a value of the Secret.
func (s *hookScene) secret(key string) string {
	s.t.Helper()
	body, err := kubernetes.admin.expect(http.MethodGet, s.secretPath(), nil, http.StatusOK)
	if err != nil {
		s.t.Fatal(err)
	}
	var o struct{ Data map[string][]byte }
	if err := json.Unmarshal(body, &o); err != nil {
		s.t.Fatal(err)
	}
	return string(o.Data[key])
}

// setSecret replaces the Secret's data, as somebody may who has the right to.
func (s *hookScene) setSecret(data map[string]string) {
	s.t.Helper()
	encoded := map[string]any{"tls.crt": nil, "tls.key": nil, "previous.crt": nil, "previous.key": nil}
	for key, value := range data {
		encoded[key] = base64.StdEncoding.EncodeToString([]byte(value))
	}
	s.patch(s.secretPath(), map[string]any{"data": encoded})
}

func (s *hookScene) patch(path string, body any) {
	s.t.Helper()
	code, answer, err := kubernetes.admin.sendAs(mergePatch, http.MethodPatch, path, body)
	if err != nil || code != http.StatusOK {
		s.t.Fatalf("%s: %d %s %v", path, code, answer, err)
	}
}

// setBundles replaces every caBundle.
func (s *hookScene) setBundles(bundle []byte) {
	s.t.Helper()
	for _, resource := range []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"} {
		s.setBundlesOf(resource, bundle)
	}
}

func (s *hookScene) setBundlesOf(resource string, bundle []byte) {
	s.t.Helper()
	path := registration + resource + "/" + s.configuration()
	body, err := kubernetes.admin.expect(http.MethodGet, path, nil, http.StatusOK)
	if err != nil {
		s.t.Fatal(err)
	}
	var o struct{ Webhooks []map[string]any }
	if err := json.Unmarshal(body, &o); err != nil {
		s.t.Fatal(err)
	}
	for _, h := range o.Webhooks {
		h["clientConfig"].(map[string]any)["caBundle"] = bundle
	}
	s.patch(path, map[string]any{"webhooks": o.Webhooks})
}

// setRules replaces the rules of a Role of the installation, or of a ClusterRole.
func (s *hookScene) setRules(kind, name, rules string) {
	s.t.Helper()
	o := mustParse(s.t, fmt.Sprintf("{apiVersion: rbac.authorization.k8s.io/v1, kind: %s, metadata: {name: %s}, rules: %s}", kind, name, rules))
	if kind == "Role" {
		o.SetNamespace(s.namespace)
	}
	mustApply(s.t, o)
}

// count returns how often the log has the event.
func (s *hookScene) count(event string) int {
	return strings.Count(s.logs.String(), "event="+event+" ")
}

// createPods creates pods in a labelled namespace until stop, which returns how many there were and what was refused. Before every
// tenth, connections are cut: the API server verifies a certificate only when it connects.
func (s *hookScene) createPods(cut func()) (stop func() (int, []string)) {
	s.t.Helper()
	namespace := newNamespace(s.t, s.label("remove-init", "enabled"))
	var running sync.WaitGroup
	var created int
	var refused []string
	end := make(chan struct{})
	running.Go(func() {
		for ; ; created++ {
			if created%10 == 9 {
				cut()
			}
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
			}
			pod := mustParse(s.t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, generateName: web-}, spec: {%s}}", namespace, injectedByOSM))
			code, answer, err := kubernetes.admin.send(http.MethodPost, podsOf(namespace)+"?dryRun=All", pod.Object)
			if err != nil || code != http.StatusCreated {
				refused = append(refused, fmt.Sprintf("%d %s %v", code, answer, err))
			}
		}
	})
	return func() (int, []string) {
		close(end)
		running.Wait()
		return created, refused
	}
}

// balancer is one address for two replicas, as a Service is. Each connection goes to the next.
type balancer struct {
	mu   sync.Mutex
	open []net.Conn
}

func (s *hookScene) balance(to ...webhook.Config) *balancer {
	s.t.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	b := &balancer{}
	s.t.Cleanup(func() { l.Close(); b.cut() })
	go func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			for range to { // a Service has only those that are ready
				if s.ready(to[n%len(to)]) == "ok" {
					break
				}
				n++
			}
			go b.pipe(conn, to[n%len(to)].Addr)
		}
	}()
	return b
}

func (b *balancer) pipe(conn net.Conn, to string) {
	defer conn.Close()
	other, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer other.Close()
	b.mu.Lock()
	b.open = append(b.open, conn)
	b.mu.Unlock()
	go func() { io.Copy(other, conn); other.Close() }()
	io.Copy(conn, other)
}

// cut ends all connections. Nobody may have a request in flight.
func (b *balancer) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, conn := range b.open {
		conn.Close()
	}
	b.open = nil
}

func TestTwoReplicasShareACertificateAndRenewItUnderLoad(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	s.conf.Certificate.Timing = quick
	one, two := s.second(), s.second()
	between := s.balance(one, two)
	s.run(one)
	s.run(two)
	s.waitUntilReady(one)
	s.waitUntilReady(two)
	s.waitUntilCalled()
	stop := s.createPods(between.cut)
	before := s.count("certificate-made")
	s.eventually("the certificate is renewed twice", func() bool { return s.count("certificate-made") >= before+2 })
	s.eventually("both use the last", func() bool { return s.count("certificate-used") >= 2*s.count("certificate-made")-1 })
	created, refused := stop()
	if created < 100 {
		t.Errorf("only %d pods were created", created)
	}
	if refused != nil {
		t.Errorf("%d of %d pods were refused, the first: %s", len(refused), created, refused[0])
	}
	t.Logf("%d pods, %d certificates", created, s.count("certificate-made"))
}

// As a rollout does it: each replica is told to stop and another takes its place.
func TestARolloutOfTheWebhookRefusesNoPod(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	s.conf.Drain = 2 * time.Second
	one, two := s.second(), s.second()
	between := s.balance(one, two)
	stops := []func(){s.run(one), s.run(two)}
	s.waitUntilReady(one)
	s.waitUntilReady(two)
	s.waitUntilCalled()
	stop := s.createPods(between.cut)
	for i, conf := range []webhook.Config{one, two} {
		ended := make(chan struct{})
		go func() {
			stops[i]()
			close(ended)
		}()
		s.eventually("it says that it stops", func() bool { return s.ready(conf) == "server: it was told to stop" })
		<-ended
		s.run(conf)
		s.waitUntilReady(conf)
	}
	if created, refused := stop(); refused != nil || created < 20 {
		t.Errorf("%d of %d pods were refused: %v", len(refused), created, refused)
	}
}

// What somebody does to Secret and caBundle, and how the webhook goes on.
func TestWhateverBecomesOfTheCertificateTheWebhookMendsIt(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	s.conf.Certificate.Timing.Settle = time.Second
	other := newCertificate(t, "other.example.com", time.Now().Add(time.Hour))
	expired := newCertificate(t, "127.0.0.1", time.Now().Add(-time.Minute))
	valid := newCertificate(t, "127.0.0.1", time.Now().Add(1000*time.Hour))
	// The webhook starts with each of them, and finds each while it runs.
	for name, data := range map[string]map[string]string{
		"missing":              {},
		"expired":              {"tls.crt": expired.crt, "tls.key": expired.key},
		"for another name":     {"tls.crt": other.crt, "tls.key": other.key},
		"unreadable":           {"tls.crt": "garbage", "tls.key": "garbage"},
		"with another's key":   {"tls.crt": valid.crt, "tls.key": other.key},
		"of another authority": {"tls.crt": valid.leaf + other.authority, "tls.key": valid.key},
	} {
		s.setSecret(data)
		end := s.run(s.conf)
		s.waitUntilReady(s.conf)
		s.waitUntilCalled()
		made := s.secret("tls.crt")
		if made == data["tls.crt"] {
			t.Errorf("%s: it was not replaced", name)
		}
		s.setSecret(data)
		s.eventually(name+": replaced while it runs", func() bool { now := s.secret("tls.crt"); return now != data["tls.crt"] && now != made })
		if s.secret("previous.crt") != made {
			t.Errorf("%s: the certificate that was in use is not kept beside the new one", name)
		}
		end()
	}
	s.run(s.conf)
	s.waitUntilReady(s.conf)
	for name, bundle := range map[string][]byte{"emptied": nil, "another authority": []byte(other.crt)} {
		s.setBundles(bundle)
		s.waitUntilCalled()
		t.Logf("caBundle %s: mended", name)
	}
}

// keyPair is a certificate with its authority and its key, as PEM: crt is both certificates.
type keyPair struct{ crt, leaf, authority, key string }

// newCertificate makes a certificate for host that ends at a time.
func newCertificate(t *testing.T, host string, end time.Time) keyPair {
	t.Helper()
	crt, key, err := cert.GenerateSelfSignedCertKeyWithOptions(cert.SelfSignedCertKeyOptions{Host: host, MaxAge: time.Until(end) + time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	leaf, authority := pem.Decode(crt)
	return keyPair{string(crt), string(pem.EncodeToMemory(leaf)), string(authority), string(key)}
}

// cert-manager keeps the Secret and the caBundles: the webhook needs no right but to read the Secret, and touches neither.
func TestACertificateThatSomebodyElseKeeps(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	s.conf.Certificate.External = true
	s.setRules("ClusterRole", "detour-webhook-"+s.namespace, "[]")
	s.setRules("Role", webhookAccount, `[{apiGroups: [""], resources: [secrets], resourceNames: [detour-webhook], verbs: [list, watch]}]`)
	s.run(s.conf)
	s.eventually("it says that there is no certificate", func() bool {
		return strings.Contains(s.ready(s.conf), "certificate: the certificate in Secret "+s.namespace+"/detour-webhook can't be used: there is none")
	})
	for range 2 { // the second is a renewal
		theirs := newCertificate(t, "127.0.0.1", time.Now().Add(time.Hour))
		s.setSecret(map[string]string{"tls.crt": theirs.crt, "tls.key": theirs.key, "ca.crt": theirs.crt})
		s.waitUntilReady(s.conf)
		s.setBundles([]byte(theirs.authority))
		s.waitUntilCalled()
		if s.secret("tls.crt") != theirs.crt {
			t.Error("the webhook has changed the Secret")
		}
	}
	if s.count("ca-bundle-written") != 0 || s.count("certificate-failed") > 1 {
		t.Errorf("it did more than read:\n%s", s.logs.String())
	}
}

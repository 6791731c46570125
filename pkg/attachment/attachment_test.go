package attachment

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

var record = Record{
	Key: Key{Network: "net", ContainerID: "c1", IfName: "eth0"}, Netns: "/run/netns/x", Pod: "shop/web", PodUID: "u", Mesh: "osm",
	Outcome: Programmed, Backend: "iptables-nft", Families: rules.Families, Payload: []byte(`{"IPv4":"*nat\nCOMMIT\n"}`),
	Asked: []redirect.Asked{{What: "excluded outbound port", Where: "spec.traffic.outboundPortExclusionList", Values: []string{"6379"}}},
	Time:  time.Unix(1700000000, 0).UTC(),
}

func TestWhatIsSavedIsLoadedAndDeleted(t *testing.T) {
	s := NewStore(t.TempDir())
	for range 2 {
		if err := s.Save(record); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Load(record.Key)
	if err != nil || !reflect.DeepEqual(got, record) {
		t.Errorf("got %+v, %v, want %+v", got, err, record)
	}
	if keys, err := s.Keys("net"); err != nil || !reflect.DeepEqual(keys, []Key{record.Key}) {
		t.Errorf("keys %v, %v", keys, err)
	}
	for range 2 {
		if err := s.Delete(record.Key); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Load(record.Key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v after deletion", err)
	}
}

func TestStateIsForRootOnly(t *testing.T) {
	dir := t.TempDir()
	if err := NewStore(dir).Save(record); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{"attachments": 0o700, "attachments/net": 0o700, "attachments/net/c1@eth0.json": 0o600} {
		info, err := os.Stat(dir + "/" + path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

func TestWhatAnInterruptedWriterLeftIsListedAndDeleted(t *testing.T) {
	dir := t.TempDir()
	s := NewStore(dir)
	if err := s.Prepare("net"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/attachments/net/c1@eth0.json.tmp", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(record.Key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a half-written record is loaded: %v", err)
	}
	keys, err := s.Keys("net")
	if err != nil || !reflect.DeepEqual(keys, []Key{record.Key}) {
		t.Fatalf("keys %v, %v", keys, err)
	}
	if err := s.Delete(keys[0]); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir + "/attachments/net"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestAPodIsRepairedUnlessSomeRecordSaysThatItNeedsNoRepair(t *testing.T) {
	of := func(outcomes ...Outcome) []Record {
		var records []Record
		for _, o := range outcomes {
			records = append(records, Record{Key: Key{"net", "c1", string(o)}, Outcome: o})
		}
		return records
	}
	for _, c := range []struct {
		records []Record
		repair  bool
		old     string
	}{
		{nil, true, ""},
		{of(Programmed), false, ""},
		{of(Skipped), false, ""},
		{of(Allowed), true, "allowed"},
		{of(Skipped, Allowed), true, "allowed"},
		{of(Allowed, Programmed), false, ""},
		{of(Programmed, Skipped), false, ""},
	} {
		if old, repair := ToRepair(c.records); repair != c.repair || old.IfName != c.old {
			t.Errorf("%v: repair is %v of %q, want %v of %q", c.records, repair, old.IfName, c.repair, c.old)
		}
	}
}

// The fields that earlier versions had for each backend, in a record and in what it calls stale.
func TestRecordsOfEarlierVersions(t *testing.T) {
	for field, payload := range map[string]string{"rules": `{"IPv4":"*nat\nCOMMIT\n"}`, "table": `"table inet detour {\n}\n"`, "payload": `["anything"]`} {
		one := `"backend":"it","families":["IPv4"],"` + field + `":` + payload
		var r Record
		if err := json.Unmarshal([]byte(`{"network":"net","netns":"/x",`+one+`,"stale":[{`+one+`}]}`), &r); err != nil {
			t.Fatal(err)
		}
		if len(r.Traces()) != 2 || r.Network != "net" || r.Netns != "/x" {
			t.Errorf("got %+v", r)
		}
		for _, trace := range r.Traces() {
			if string(trace.Payload) != payload || trace.Backend != "it" {
				t.Errorf("%s: got %+v", field, trace)
			}
		}
	}
}

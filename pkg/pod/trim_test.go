package pod

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const wordyPod = `{"kind":"Pod","apiVersion":"v1",
	"metadata":{"namespace":"shop","name":"web","uid":"u","labels":{"mesh.io/a":"1","app":"web"},"managedFields":[{"manager":"LONG"}],
		"annotations":{"mesh.io/b":"2","kubernetes.io/config.mirror":"hash","kubectl.kubernetes.io/last-applied-configuration":"LONG"}},
	"spec":{"securityContext":{"runAsUser":1000,"runAsGroup":0},"nodeSelector":{"detour.io/ready":"true","LONG":"LONG"},"volumes":[{"name":"LONG"}],
		"initContainers":[{"name":"migrate","args":["LONG"],"command":["LONG"],"env":[{"name":"LONG"}],"securityContext":{"runAsUser":0}}],
		"containers":[
			{"name":"app","args":["LONG"],"env":[{"name":"LONG","value":"LONG"}],"ports":[{"containerPort":8080,"name":"LONG"}]},
			{"name":"proxy","args":["a",""],"env":[{"name":"A","value":"b"},{"name":"C","valueFrom":{"fieldRef":{"fieldPath":"LONG"}}},{"name":"D"}],
				"restartPolicy":"Always","securityContext":{"runAsUser":1500,"runAsGroup":1500}}]},
	"status":{"phase":"LONG"}}`

func TestATrimmedPodHasTheSameFacts(t *testing.T) {
	asListed := strings.Replace(wordyPod, `"kind":"Pod","apiVersion":"v1",`, "", 1) // as the API server lists it
	data, err := Trim([]byte(asListed), "proxy", func(name string) bool { return strings.HasPrefix(name, "mesh.io/") })
	if err != nil || strings.Contains(string(data), "LONG") {
		t.Fatalf("%v, %s", err, data)
	}
	got, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Parse([]byte(wordyPod))
	if err != nil {
		t.Fatal(err)
	}
	if !want.SelectsReady {
		t.Error("it does not select ready nodes")
	}
	delete(want.Labels, "app")
	delete(want.Annotations, "kubectl.kubernetes.io/last-applied-configuration")
	for _, c := range []*Container{&want.InitContainers[0], &want.Containers[0]} {
		c.Args, c.Env = nil, nil
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// What Parse will read some day is kept as well: a trimmed pod has every field of wire.
func TestEveryFieldThatIsReadIsKept(t *testing.T) {
	var full wire
	fill(reflect.ValueOf(&full).Elem())
	full.Kind, full.APIVersion = "Pod", "v1"
	data, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	trimmed, err := Trim(data, "text", func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	var got wire
	if err := json.Unmarshal(trimmed, &got); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("%v, %s", err, trimmed)
	}
}

// fill gives every field a value that is not zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(7)
	case reflect.Uint16:
		v.SetUint(7)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(field)
		}
	default:
		panic(v.Kind())
	}
}

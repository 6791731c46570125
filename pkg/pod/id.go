package pod

// ID names one pod. UID is empty where a runtime does not pass it.
type ID struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// String returns NAMESPACE/NAME.
func (i ID) String() string { return i.Namespace + "/" + i.Name }

{{- /* `make chart` made this of deploy/components/uninstall/uninstall.yaml and of what changes it. */}}
{{- define "detour.uninstall" }}
- op: replace
  path: /spec/updateStrategy/rollingUpdate/maxUnavailable
  value: 100%
- op: replace
  path: /spec/template/spec/containers/0/args
  value:
    - uninstall
    - --cni-bin-dir=/host/opt/cni/bin
    - --cni-conf-dir=/host/etc/cni/net.d
    - --cni-cache-dir=/host/var/lib/cni/results
- op: remove
  path: /spec/template/spec/containers/0/env
- op: remove
  path: /spec/template/spec/containers/0/ports
- op: remove
  path: /spec/template/spec/containers/0/readinessProbe
- op: remove
  path: /spec/template/spec/containers/0/livenessProbe
- op: replace
  path: /spec/template/spec/containers/0/volumeMounts
  value:
    - name: cni-bin
      mountPath: /host/opt/cni/bin
    - name: cni-conf
      mountPath: /host/etc/cni/net.d
    # These tell which pods may still need the binary to end: pods of the plugin's records whose network namespace exists, and
    # pods of which the runtime keeps a configuration with detour in it.
    - name: run
      mountPath: /run/detour
    - name: netns
      mountPath: /run/netns
      mountPropagation: HostToContainer # lets the host unmount a namespace
      readOnly: true
    - name: cni-cache
      mountPath: /host/var/lib/cni/results
      readOnly: true
- op: replace
  path: /spec/template/spec/volumes
  value:
    - name: cni-bin
      hostPath:
        path: {{ .Values.cni.binDir }}
        type: DirectoryOrCreate
    - name: cni-conf
      hostPath:
        path: {{ .Values.cni.confDir }}
        type: DirectoryOrCreate
    - name: run
      hostPath:
        path: /run/detour
        type: DirectoryOrCreate
    - name: netns
      hostPath:
        path: /run/netns
        type: DirectoryOrCreate
    - name: cni-cache
      hostPath:
        path: /var/lib/cni/results
        type: DirectoryOrCreate
    - name: credential
      projected:
        defaultMode: 0600
        sources:
          - serviceAccountToken:
              path: token
              expirationSeconds: 3600
          - configMap:
              name: kube-root-ca.crt
              items:
                - key: ca.crt
                  path: ca.crt
- op: add
  path: /spec/template/spec/initContainers
  value: []
- op: copy
  from: /spec/template/spec/containers/0
  path: /spec/template/spec/initContainers/0
- op: replace
  path: /spec/template/spec/initContainers/0/name
  value: uninstall
- op: add
  path: /spec/template/spec/initContainers/0/args/-
  value: --once
# Only the init container has a credential: it takes the label detour.io/ready off the node while the entry is still there.
- op: add
  path: /spec/template/spec/initContainers/0/args/-
  value: --unmark-node
- op: add
  path: /spec/template/spec/initContainers/0/env
  value:
    - name: NODE_NAME
      valueFrom:
        fieldRef:
          fieldPath: spec.nodeName
- op: add
  path: /spec/template/spec/initContainers/0/volumeMounts/-
  value:
    name: credential
    mountPath: /var/run/secrets/kubernetes.io/serviceaccount
    readOnly: true
- op: add
  path: /spec/template/spec/containers/0/args/-
  value: --wait
{{- end }}

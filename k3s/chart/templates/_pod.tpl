{{/* What the node's container is told. What the chart decides goes by the environment, which wins over edge.toml. */}}
{{- define "edge-node.env" -}}
- name: EDGE_HOME
  value: /var/lib/edge
- name: EDGE_SETTINGS
  value: /etc/edge/edge.toml
- name: EDGE_SERVER__HOST
  value: {{ .Values.listen | quote }}
- name: EDGE_SERVER__PORT
  value: "8080"
- name: EDGE_SERVER__DRAIN_TIMEOUT_S
  value: {{ .Values.drain.gracefulSeconds | quote }}
- name: EDGE_AUTH__KEYS_FILE
  value: /etc/edge-secrets/api-keys/keys.json
{{- with .Values.tls.existingSecret }}
- name: EDGE_SERVER__TLS_CERT
  value: /etc/edge-secrets/tls/tls.crt
- name: EDGE_SERVER__TLS_KEY
  value: /etc/edge-secrets/tls/tls.key
{{- end }}
{{- include "edge-node.modelEnv" . }}
{{- with .Values.gpu.timeSlicing.memoryBudgetMiB }}
- name: EDGE_MEMORY__BUDGET_MIB
  value: {{ int64 . | quote }}
{{- end }}
{{- if eq .Values.gpu.mode "runtimeOnly" }}
- name: NVIDIA_VISIBLE_DEVICES
  value: all
- name: NVIDIA_DRIVER_CAPABILITIES
  value: compute,utility
{{- end }}
{{- if and (dig "mqtt" "url" "" .Values.config) (not (dig "mqtt" "node" "" .Values.config)) }}
# Not where the broker comes from an enrollment: there the fleet gives the node its name.
- name: EDGE_MQTT__NODE
{{- include "edge-node.ownName" . | nindent 2 }}
{{- end }}
{{- with .Values.mqtt.tls.existingSecret }}
- name: EDGE_MQTT__CA_FILE
  value: /etc/edge-secrets/mqtt-tls/ca.crt
- name: EDGE_MQTT__CERT_FILE
  value: /etc/edge-secrets/mqtt-tls/tls.crt
- name: EDGE_MQTT__KEY_FILE
  value: /etc/edge-secrets/mqtt-tls/tls.key
{{- end }}
{{- with .Values.mqtt.password.existingSecret }}
- name: EDGE_MQTT__PASSWORD_FILE
  value: /etc/edge-secrets/mqtt-password/password
{{- end }}
{{- with .Values.mqtt.commandKeys.existingSecret }}
- name: EDGE_MQTT__COMMAND_KEYS_FILE
  value: /etc/edge-secrets/command-keys/command-keys.pem
{{- end }}
{{- with .Values.fleet.apiKey.existingSecret }}
- name: EDGE_FLEET__API_KEY_FILE
  value: /etc/edge-secrets/fleet-api-key/api-key
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What a node is called. The name of a pod is another one after each restart. A node is where its state is: the machine, or the
claim of the release, which has one replica then. Only without either is it the pod. */}}
{{- define "edge-node.ownName" -}}
{{- if and (eq .Values.workload.kind "Deployment") (eq .Values.state.kind "pvc") -}}
value: {{ include "edge-node.fullname" . | quote }}
{{- else -}}
valueFrom:
  fieldRef:
    fieldPath: {{ ternary "spec.nodeName" "metadata.name" (or (eq .Values.workload.kind "DaemonSet") (eq .Values.state.kind "hostPath")) }}
{{- end -}}
{{- end -}}

{{- define "edge-node.modelEnv" -}}
{{- $model := .Values.model }}
- name: EDGE_MODEL__NAME
{{- if eq $model.source "known" }}
  value: {{ $model.name | quote }}
{{- else if eq $model.source "http" }}
  value: {{ include "edge-node.fetchedName" . }}
{{- else }}
  value: {{ printf "/models/%s" $model.file | quote }}
{{- end }}
{{- with $model.alias }}
- name: EDGE_MODEL__ALIAS
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "edge-node.mounts" -}}
- name: state
  mountPath: /var/lib/edge
- name: tmp
  mountPath: /tmp
- name: settings
  mountPath: /etc/edge
  readOnly: true
- name: api-keys
  mountPath: /etc/edge-secrets/api-keys
  readOnly: true
{{- range include "edge-node.secrets" . | fromYamlArray }}
- name: {{ .name }}
  mountPath: /etc/edge-secrets/{{ .name }}
  readOnly: true
{{- end }}
{{- if has .Values.model.source (list "hostPath" "pvc" "image") }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The secrets beside the API keys: name of the volume, of the Secret, and which of its keys becomes which file. */}}
{{- define "edge-node.secrets" -}}
{{- with .Values.tls.existingSecret }}
- {name: tls, secret: {{ . | quote }}, items: {tls.crt: tls.crt, tls.key: tls.key}}
{{- end }}
{{- with .Values.mqtt.tls.existingSecret }}
- {name: mqtt-tls, secret: {{ . | quote }}, items: {ca.crt: ca.crt, tls.crt: tls.crt, tls.key: tls.key}}
{{- end }}
{{- if .Values.mqtt.password.existingSecret }}
- {name: mqtt-password, secret: {{ .Values.mqtt.password.existingSecret | quote }}, items: { {{- .Values.mqtt.password.key | quote }}: password}}
{{- end }}
{{- if .Values.mqtt.commandKeys.existingSecret }}
- {name: command-keys, secret: {{ .Values.mqtt.commandKeys.existingSecret | quote }}, items: { {{- .Values.mqtt.commandKeys.key | quote }}: command-keys.pem}}
{{- end }}
{{- if .Values.fleet.apiKey.existingSecret }}
- {name: fleet-api-key, secret: {{ .Values.fleet.apiKey.existingSecret | quote }}, items: { {{- .Values.fleet.apiKey.key | quote }}: api-key}}
{{- end }}
{{- end -}}

{{/* A volume of a Secret. `optional: false` is the default, and said all the same: podman 4 crashes without it. A token may be
gone: who is enrolled needs none. */}}
{{- define "edge-node.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret | quote }}
    defaultMode: 288 # 0440: the node's group reads
    optional: {{ .optional | default false }}
    items:
      {{- range $key, $path := .items }}
      - key: {{ $key | quote }}
        path: {{ $path }}
      {{- end }}
{{- end -}}

{{- define "edge-node.volumes" -}}
- name: state
{{- if eq .Values.state.kind "hostPath" }}
  hostPath:
    path: {{ .Values.state.hostPath.path | quote }}
    type: DirectoryOrCreate
{{- else if eq .Values.state.kind "pvc" }}
  persistentVolumeClaim:
    claimName: {{ .Values.state.pvc.existingClaim | default (printf "%s-state" (include "edge-node.fullname" .)) | quote }}
{{- else }}
  emptyDir:
    sizeLimit: {{ .Values.state.emptyDir.sizeLimit }}
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
- name: settings
  configMap:
    name: {{ include "edge-node.fullname" . | quote }}
    optional: false
{{ include "edge-node.secretVolume" (dict "name" "api-keys" "secret" .Values.apiKeys.existingSecret "items" (dict .Values.apiKeys.key "keys.json")) }}
{{- range include "edge-node.secrets" . | fromYamlArray }}
{{ include "edge-node.secretVolume" . }}
{{- end }}
{{- if .Values.enrollment.existingSecret }}
{{ include "edge-node.secretVolume" (dict "name" "enrollment" "secret" .Values.enrollment.existingSecret "items" (dict .Values.enrollment.key "token") "optional" true) }}
{{- end }}
{{- if eq .Values.model.source "hostPath" }}
- name: models
  hostPath:
    path: {{ .Values.model.hostPath.path | quote }}
    type: Directory
{{- else if eq .Values.model.source "pvc" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.model.pvc.existingClaim | quote }}
    readOnly: true
{{- else if eq .Values.model.source "image" }}
- name: models
  image:
    reference: {{ .Values.model.image.reference | quote }}
    pullPolicy: {{ .Values.model.image.pullPolicy }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "edge-node.hardened" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "edge-node.initContainers" -}}
{{- if and (eq .Values.state.kind "hostPath") .Values.state.hostPath.own }}
# The kubelet makes a host's directory for root; fsGroup does not reach it. Nothing else runs as root.
- name: own-state
  image: {{ include "edge-node.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [/bin/chown, {{ printf "%d:%d" (int64 .Values.securityContext.runAsUser) (int64 .Values.securityContext.runAsGroup) | quote }}, /var/lib/edge]
  securityContext:
    runAsUser: 0
    runAsGroup: 0
    runAsNonRoot: false
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities:
      drop: [ALL]
      add: [CHOWN]
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  volumeMounts:
    - name: state
      mountPath: /var/lib/edge
{{- end }}
{{- if eq .Values.model.source "http" }}
# Goes on where it stopped, checks the sum, and gives the file its name only then. With the file here it asks for nothing.
- name: fetch-model
  image: {{ include "edge-node.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [models, pull, {{ .Values.model.http.url | quote }}, --name, {{ include "edge-node.fetchedName" . }}, --sha256, {{ .Values.model.http.sha256 | quote }}]
  env:
    - name: EDGE_HOME
      value: /var/lib/edge
    - name: EDGE_SETTINGS
      value: /etc/edge/edge.toml
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  securityContext:
    {{- include "edge-node.hardened" . | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 128Mi}
    limits: {memory: 512Mi}
  volumeMounts:
    - name: state
      mountPath: /var/lib/edge
    - name: tmp
      mountPath: /tmp
    - name: settings
      mountPath: /etc/edge
      readOnly: true
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* Beside the node and not before it: a node serves while its fleet is away. Nobody else sees the token. The container may not end,
since the pod would count as not ready; enrolled, it sleeps. As the first process of its container it must catch the word to end. */}}
{{- define "edge-node.enroller" -}}
name: enroll
image: {{ include "edge-node.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command:
  - /bin/sh
  - -c
  - |
    trap 'exit 0' TERM INT
    edge enroll --name "$NODE_NAME" --keep-trying "$@" &
    wait $! || exit
    sleep infinity &
    wait
  - enroll
args: [--fleet, {{ .Values.enrollment.url | quote }}, --token-file, /etc/edge-secrets/enrollment/token]
env:
  - name: NODE_NAME
    {{- include "edge-node.ownName" . | nindent 4 }}
  - name: EDGE_HOME
    value: /var/lib/edge
  - name: EDGE_SETTINGS
    value: /etc/edge/edge.toml
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  {{- include "edge-node.hardened" . | nindent 2 }}
resources:
  requests: {cpu: 10m, memory: 64Mi}
  limits: {memory: 256Mi}
volumeMounts:
  - name: state
    mountPath: /var/lib/edge
  - name: tmp
    mountPath: /tmp
  - name: settings
    mountPath: /etc/edge
    readOnly: true
  - name: enrollment
    mountPath: /etc/edge-secrets/enrollment
    readOnly: true
{{- end -}}

{{- define "edge-node.resources" -}}
{{- $extra := dict }}
{{- if eq .Values.gpu.mode "devicePlugin" }}
{{- $_ := set $extra .Values.gpu.resourceName 1 }}
{{- else if eq .Values.gpu.mode "mig" }}
{{- $_ := set $extra (printf "nvidia.com/mig-%s" .Values.gpu.mig.profile) 1 }}
{{- end }}
{{- $limits := merge (dict) $extra (.Values.resources.limits | default dict) }}
{{- with .Values.resources.requests }}
requests:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $limits }}
limits:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if eq .Values.gpu.mode "dra" }}
claims:
  - name: gpu
{{- end }}
{{- end -}}

{{- define "edge-node.probe" -}}
httpGet:
  path: {{ .path }}
  port: http
  scheme: {{ upper .scheme }}
{{- end -}}

{{- define "edge-node.container" -}}
{{- $scheme := include "edge-node.scheme" . }}
name: edge
image: {{ include "edge-node.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve]
env:
  {{- include "edge-node.env" . | nindent 2 }}
ports:
  - name: http
    containerPort: 8080
    protocol: TCP
    {{- with .Values.hostPort }}
    hostPort: {{ int64 . }}
    {{- end }}
# Until the model answers. Fetching it happens before, in an init container, and does not count.
startupProbe:
  {{- include "edge-node.probe" (dict "path" "/health/ready" "scheme" $scheme) | nindent 2 }}
  periodSeconds: {{ int64 .Values.probes.startup.periodSeconds }}
  timeoutSeconds: 5
  failureThreshold: {{ divf .Values.probes.startup.budgetSeconds .Values.probes.startup.periodSeconds | ceil | int64 }}
# The event loop alone: an engine that is replaced, or a node that is full, is not a reason to kill it.
livenessProbe:
  {{- include "edge-node.probe" (dict "path" "/health/live" "scheme" $scheme) | nindent 2 }}
  periodSeconds: {{ int64 .Values.probes.liveness.periodSeconds }}
  timeoutSeconds: {{ int64 .Values.probes.liveness.timeoutSeconds }}
  failureThreshold: {{ int64 .Values.probes.liveness.failureThreshold }}
# A forward pass succeeded lately, or the fleet answers in the meantime. Overload does not make it fail: it is answered with 429.
readinessProbe:
  {{- include "edge-node.probe" (dict "path" "/health/ready" "scheme" $scheme) | nindent 2 }}
  periodSeconds: {{ int64 .Values.probes.readiness.periodSeconds }}
  timeoutSeconds: {{ int64 .Values.probes.readiness.timeoutSeconds }}
  failureThreshold: {{ int64 .Values.probes.readiness.failureThreshold }}
{{- with int64 .Values.drain.preStopSeconds }}
lifecycle:
  # New requests still come for a moment, until every proxy has heard that this pod ends.
  preStop:
    {{- if include "edge-node.atLeast" (dict "minimum" "1.30.0" "version" $.Capabilities.KubeVersion.Version) }}
    sleep:
      seconds: {{ . }}
    {{- else }}
    exec:
      command: [/bin/sleep, {{ . | quote }}]
    {{- end }}
{{- end }}
resources:
  {{- include "edge-node.resources" . | trim | nindent 2 }}
securityContext:
  {{- include "edge-node.hardened" . | nindent 2 }}
volumeMounts:
  {{- include "edge-node.mounts" . | nindent 2 }}
{{- end -}}

{{- define "edge-node.podSpec" -}}
serviceAccountName: {{ include "edge-node.serviceAccount" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- if and (ne .Values.gpu.mode "none") .Values.gpu.runtimeClassName }}
runtimeClassName: {{ .Values.gpu.runtimeClassName | quote }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
# preStop, then draining, then ten seconds in which the engines end, and what a slow disk needs for what they keep.
terminationGracePeriodSeconds: {{ add (int64 .Values.drain.preStopSeconds) (int64 .Values.drain.gracefulSeconds) 10 (div (int64 (dig "cache" "kept_mib" 0 .Values.config)) 9) }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int64 .Values.securityContext.runAsUser }}
  runAsGroup: {{ int64 .Values.securityContext.runAsGroup }}
  fsGroup: {{ int64 .Values.securityContext.runAsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  {{- with .Values.securityContext.supplementalGroups }}
  supplementalGroups:
    {{- range . }}
    - {{ int64 . }}
    {{- end }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- with include "edge-node.initContainers" . | trim }}
initContainers:
  {{- . | nindent 2 }}
{{- end }}
containers:
  - {{ include "edge-node.container" . | nindent 4 | trim }}
{{- if .Values.enrollment.url }}
  - {{ include "edge-node.enroller" . | nindent 4 | trim }}
{{- end }}
{{- if eq .Values.gpu.mode "dra" }}
resourceClaims:
  - name: gpu
    resourceClaimTemplateName: {{ include "edge-node.fullname" . | quote }}
{{- end }}
volumes:
  {{- include "edge-node.volumes" . | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

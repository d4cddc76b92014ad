{{- define "edge-node.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "edge-node.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "edge-node.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "edge-node.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "edge-node.selector" -}}
app.kubernetes.io/name: {{ include "edge-node.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "edge-node.labels" -}}
{{ include "edge-node.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "edge-node.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "edge-node.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "edge-node.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "edge-node.scheme" -}}
{{- if .Values.tls.existingSecret }}https{{ else }}http{{ end -}}
{{- end -}}

{{/* What the node's store calls a model from the network: another address or sum is another model there, so that a change of
values fetches, and an unchanged one does not. */}}
{{- define "edge-node.fetchedName" -}}
{{- printf "chart-%s" (printf "%s %s" .Values.model.http.url .Values.model.http.sha256 | sha256sum | trunc 16) -}}
{{- end -}}

{{- define "edge-node.atLeast" -}}
{{- if semverCompare (printf ">=%s-0" .minimum) .version }}true{{ end -}}
{{- end -}}

{{/* A number stays one, a share of all becomes a text. */}}
{{- define "edge-node.maxUnavailable" -}}
{{- if kindIs "string" .Values.workload.maxUnavailable -}}
{{- .Values.workload.maxUnavailable | quote -}}
{{- else -}}
{{- int64 .Values.workload.maxUnavailable -}}
{{- end -}}
{{- end -}}

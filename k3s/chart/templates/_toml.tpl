{{/* edge.toml from the map `config`. A scalar or a list in JSON is the same in TOML. */}}
{{- define "edge-node.toml" -}}
# Written by the chart from the value `config`.
{{- range $section, $table := omit .Values.config "models" }}

[{{ $section }}]
{{- range $name, $value := $table }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end }}
{{- range $model, $table := (.Values.config.models | default dict) }}

[models.{{ toJson $model }}]
{{- range $name, $value := $table }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end }}
{{ end -}}

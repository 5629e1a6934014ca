{{- define "guard.labels" -}}
app.kubernetes.io/name: inference-guard
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "guard.arguments" -}}
{{- if eq .Values.mode "vllm" -}}
{{ concat (list "--host" "0.0.0.0" "--port" (toString .Values.port)) .Values.args | toJson }}
{{- else -}}
{{ concat (list "--port" (toString .Values.port)) .Values.args | toJson }}
{{- end -}}
{{- end -}}

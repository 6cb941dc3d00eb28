{{- define "poc.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "poc.labels" -}}
app.kubernetes.io/name: poc-worker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "poc.secret" -}}
{{ .Values.secrets.existing | default (printf "%s-secrets" (include "poc.name" .)) }}
{{- end }}

{{- define "poc.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What all processes are told, and the secrets of each as files that are named by their keys. */}}
{{- define "poc.env" -}}
- {name: POC_NAMESPACE, value: {{ .root.Values.namespace | quote }}}
{{- range $name, $value := .root.Values.settings }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- range .secrets }}
- {name: POC_{{ upper . }}_FILE, value: /run/secrets/poc/{{ . }}}
{{- end }}
{{- end }}

{{- define "poc.secretVolume" -}}
- name: secrets
  secret:
    secretName: {{ include "poc.secret" .root }}
    defaultMode: 0440
    items:
      {{- range .secrets }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}

{{- define "poc.mounts" -}}
- {name: secrets, mountPath: /run/secrets/poc, readOnly: true}
- {name: scratch, mountPath: /tmp, subPath: tmp}
- {name: scratch, mountPath: /home/poc, subPath: home}
{{- end }}

{{- define "poc.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false   # their variables would begin with POC_, for a release called poc
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "poc.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "token-broker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "token-broker.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "token-broker.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "token-broker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* The component keeps the test pod, which has the other two labels as well, out of the Service. */}}
{{- define "token-broker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "token-broker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: broker
{{- end }}

{{- define "token-broker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "token-broker.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "token-broker.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}
{{- .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* Restricted Pod Security, and not a value: every pod of the chart has it. */}}
{{- define "token-broker.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "token-broker.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* broker.yaml: the user's configuration, over the chart's own `server`. */}}
{{- define "token-broker.config" -}}
{{- $config := deepCopy (default dict .Values.config) }}
{{- $server := dict
  "public" (dict "host" "0.0.0.0" "port" 8080)
  "ops" (dict "host" "0.0.0.0" "port" 9090)
  "drain_delay" (printf "%ds" (int .Values.shutdown.drainSeconds))
  "shutdown_grace" (printf "%ds" (int .Values.shutdown.gracefulTimeoutSeconds))
  "keep_alive" "75s" }}
{{- $_ := set $config "server" (mustMergeOverwrite $server (default dict $config.server)) }}
{{- toYaml $config }}
{{- end }}

{{- /* All that is wrong with values beyond what the schema can say; each fault says what to do. */}}
{{- define "token-broker.validate" -}}
{{- $config := default dict .Values.config }}
{{- $given := default dict $config.server }}
{{- $server := (include "token-broker.config" . | fromYaml).server }}
{{- if not $config.profiles }}
{{- fail "config has no profiles: put the content of your broker.yaml under `config` in your values, with one entry or more under config.profiles; the comment on `config` in the chart's values.yaml shows one" }}
{{- end }}
{{- if or (hasKey $given "drain_delay") (hasKey $given "shutdown_grace") }}
{{- fail "config.server.drain_delay and config.server.shutdown_grace belong to the chart, because the pod's grace period is derived from them: set shutdown.drainSeconds and shutdown.gracefulTimeoutSeconds instead" }}
{{- end }}
{{- range $listener := list "public" "ops" }}
{{- $host := (index $server $listener).host }}
{{- if or (hasPrefix "127." $host) (has $host (list "localhost" "::1")) }}
{{- fail (printf "config.server.%s.host is %s, where neither the Service nor the probes reach the pod: leave it out, the chart sets 0.0.0.0" $listener $host) }}
{{- end }}
{{- end }}
{{- if eq (int $server.public.port) (int $server.ops.port) }}
{{- fail (printf "config.server.public.port and config.server.ops.port are both %d: give the two listeners different ports" (int $server.public.port)) }}
{{- end }}
{{- if eq (int .Values.service.port) (int .Values.service.opsPort) }}
{{- fail (printf "service.port and service.opsPort are both %d: give the Service's two ports different numbers" (int .Values.service.port)) }}
{{- end }}
{{- $directory := printf "%s/" (trimSuffix "/" .Values.secrets.mountPath) }}
{{- if and (contains $directory (toJson $config)) (not .Values.secrets.existingSecret) (not .Values.extraVolumeMounts) }}
{{- fail (printf "config reads files under %s but no Secret is mounted there: make a Secret with these files as its keys and name it in secrets.existingSecret" $directory) }}
{{- end }}
{{- end }}

{{- /* "true" where the ServiceMonitor is to be rendered, else nothing. */}}
{{- define "token-broker.rendersServiceMonitor" -}}
{{- if .Values.metrics.serviceMonitor.enabled }}
{{- if or (eq .Values.metrics.serviceMonitor.renderMode "alwaysRender") (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/ServiceMonitor") }}
{{- true }}
{{- else if eq .Values.metrics.serviceMonitor.renderMode "failIfMissing" }}
{{- fail "metrics.serviceMonitor is enabled but the cluster does not know ServiceMonitors: install the Prometheus operator first, or set metrics.serviceMonitor.renderMode to skipIfMissing, or to alwaysRender when rendering without a cluster" }}
{{- end }}
{{- end }}
{{- end }}

/** deploy/kubernetes and compose.yaml against what they configure: the types of Kubernetes, and Millrace's own names. */

import { execFileSync, spawnSync } from 'node:child_process'
import { globSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import * as keda from '@kubernetes-models/keda/keda.sh/v1alpha1'
import * as apps from 'kubernetes-models/apps/v1'
import * as autoscaling from 'kubernetes-models/autoscaling/v2'
import * as batch from 'kubernetes-models/batch/v1'
import * as networking from 'kubernetes-models/networking.k8s.io/v1'
import * as policy from 'kubernetes-models/policy/v1'
import * as core from 'kubernetes-models/v1'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { parse, parseAllDocuments } from 'yaml'
import { CONSUMER, STREAM } from '../../src/broker/streams.ts'
import { configTable, loadConfig } from '../../src/config.ts'

const FOLDER = 'deploy/kubernetes'
const read = (file: string) => readFileSync(file, 'utf8')
const documents: any[] = globSync(`${FOLDER}/**/*.yaml`).flatMap((file) =>
  parseAllDocuments(read(file)).map((document) => {
    assert.equal(document.errors, [], file)
    return { file, ...document.toJS() }
  }),
)
const of = (kind: string) => documents.filter((document) => document.kind === kind)
const named = (kind: string, name: string) => {
  const found = of(kind).find(({ metadata }) => metadata.name === name)
  assert.ok(found, `${kind} ${name} is there`)
  return found
}
const workloads = [...of('Deployment'), ...of('Job')]
const podOf = (workload: any) => workload.spec.template.spec
const containerOf = (workload: any) => podOf(workload).containers[0]

const MODULES: Record<string, { from: string; models: Record<string, any> }> = {
  'apps/v1': { from: 'kubernetes-models/apps/v1', models: apps },
  'autoscaling/v2': { from: 'kubernetes-models/autoscaling/v2', models: autoscaling },
  'batch/v1': { from: 'kubernetes-models/batch/v1', models: batch },
  'keda.sh/v1alpha1': { from: '@kubernetes-models/keda/keda.sh/v1alpha1', models: keda },
  'networking.k8s.io/v1': { from: 'kubernetes-models/networking.k8s.io/v1', models: networking },
  'policy/v1': { from: 'kubernetes-models/policy/v1', models: policy },
  v1: { from: 'kubernetes-models/v1', models: core },
}

test('every document is valid for its kind, and has no field that its kind does not know', () => {
  const lines: string[] = []
  for (const { file, ...document } of documents.filter(({ kind }) => kind !== 'Kustomization')) {
    const module = MODULES[document.apiVersion]
    assert.ok(module !== undefined, `${file}: ${document.apiVersion}`)
    // Values: required fields, types, formats.
    new module.models[document.kind](document).validate()
    // Fields: the compiler refuses a literal with one too many.
    lines.push(
      `export const d${lines.length}: import('${module.from}').I${document.kind} = ${JSON.stringify(document)}`,
    )
  }
  const cache = 'node_modules/.cache/millrace'
  mkdirSync(cache, { recursive: true })
  writeFileSync(`${cache}/manifests.ts`, lines.join('\n'))
  const options = ['--noEmit', '--strict', '--skipLibCheck', '--module', 'nodenext', '--ignoreConfig']
  const { status, stdout } = spawnSync('node_modules/.bin/tsc', [...options, `${cache}/manifests.ts`], {
    encoding: 'utf8',
  })
  assert.is(status, 0, stdout)
})

test('kustomization lists the documents that are there', () => {
  const listed = of('Kustomization')[0].resources.sort()
  const there = globSync('*.yaml', { cwd: FOLDER }).filter((file) => file !== 'kustomization.yaml')
  assert.equal(listed, there.sort())
})

test('every variable is one of Millrace, with a value that it takes, and the ports agree', () => {
  const known = new Set([...configTable().matchAll(/^\| `(\w+)`/gm)].map(([, name]) => name))
  const settings: Record<string, string> = named('ConfigMap', 'millrace').data
  const config = loadConfig(settings)
  for (const workload of workloads) {
    const { env, ports = [], volumeMounts } = containerOf(workload)
    for (const { name } of [...env, ...Object.keys(settings).map((name) => ({ name }))])
      assert.ok(known.has(name), `${workload.file}: ${name}`)
    for (const port of ports)
      assert.is(port.containerPort, port.name === 'http' ? config.PORT : config.WORKER_PORT, workload.file)
    const annotated = workload.spec.template.metadata.annotations?.['prometheus.io/port']
    if (ports.length > 0) assert.is(annotated, String(ports[0].containerPort))
    for (const path of [settings.NATS_CA_FILE!, settings.NATS_CERT_FILE!, settings.NATS_KEY_FILE!])
      assert.ok(
        volumeMounts.some(({ mountPath }: any) => path.startsWith(`${mountPath}/`)),
        path,
      )
  }
  for (const [name, service] of Object.entries<any>(parse(read('compose.yaml'), { merge: true }).services))
    if (service.build !== undefined)
      for (const variable of Object.keys(service.environment)) assert.ok(known.has(variable), `${name}: ${variable}`)
})

test('what refers to something refers to what is there', () => {
  const labels = workloads.map((workload) => workload.spec.template.metadata.labels)
  const matches = (selector: Record<string, string>, of: Record<string, string>) =>
    Object.entries(selector).every(([name, value]) => of[name] === value)
  const selectors = [
    ...of('Service').map(({ spec }) => spec.selector),
    ...of('PodDisruptionBudget').map(({ spec }) => spec.selector.matchLabels),
    ...of('NetworkPolicy').map(({ spec }) => spec.podSelector.matchLabels),
  ]
  for (const selector of selectors)
    assert.ok(
      labels.some((set) => matches(selector, set)),
      JSON.stringify(selector),
    )
  for (const { spec } of of('Deployment')) assert.ok(matches(spec.selector.matchLabels, spec.template.metadata.labels))
  for (const { spec } of [...of('HorizontalPodAutoscaler'), ...of('ScaledObject')])
    named('Deployment', spec.scaleTargetRef.name)
  for (const { spec } of of('Service'))
    for (const { targetPort } of spec.ports)
      assert.ok(workloads.some((workload) => containerOf(workload).ports?.some(({ name }: any) => name === targetPort)))
  for (const workload of workloads) {
    const { envFrom, ports = [], volumeMounts, ...container } = containerOf(workload)
    for (const { configMapRef } of envFrom) named('ConfigMap', configMapRef.name)
    const volumes = podOf(workload).volumes.map(({ name }: any) => name)
    assert.equal(volumeMounts.map(({ name }: any) => name).sort(), volumes.sort())
    for (const probe of ['startupProbe', 'livenessProbe', 'readinessProbe'])
      if (container[probe]) assert.is(container[probe].httpGet.port, ports[0].name)
  }
})

test('each process is started by a command there is, as no one special, and has the time it needs to end', () => {
  const dockerfile = read('Dockerfile')
  assert.match(dockerfile, /^USER node$/m)
  assert.match(dockerfile, /^ENTRYPOINT \["node", .*"dist\/cli\.js"\]$/m)
  const help = execFileSync(process.execPath, ['src/cli.ts', 'help'], { encoding: 'utf8' })
  const closeMs = Number(/const CLOSE_MS = ([\d_]+)/.exec(read('src/http/server.ts'))?.[1]?.replaceAll('_', ''))
  const { PUBLISH_TIMEOUT_MS } = loadConfig({})
  for (const workload of workloads) {
    const pod = podOf(workload)
    const { args, image, lifecycle, securityContext, resources } = containerOf(workload)
    assert.match(help, new RegExp(`^  ${args[0]} `, 'm'))
    assert.is(image, of('Kustomization')[0].images[0].name)
    assert.is(pod.securityContext.runAsNonRoot, true)
    assert.is(pod.automountServiceAccountToken, false)
    assert.equal(securityContext, {
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    })
    assert.ok(resources.requests.cpu && resources.requests.memory && resources.limits.memory)
    const drainS = (closeMs + PUBLISH_TIMEOUT_MS) / 1_000 + (lifecycle?.preStop.sleep.seconds ?? 0)
    if (workload.kind === 'Deployment') assert.ok(pod.terminationGracePeriodSeconds >= drainS, workload.file)
  }
})

test('workers are scaled by a metric, a stream and a consumer that exist', () => {
  const source = read('src/telemetry/metrics.ts')
  const isMetric = (name: string) => source.includes(`'${name.replace(/^millrace_/, '')}'`)
  const [prometheus, jetstream] = of('ScaledObject')[0].spec.triggers
  for (const [name] of prometheus.metadata.query.matchAll(/\w+_\w+/g)) assert.ok(isMetric(name), name)
  const external = named('HorizontalPodAutoscaler', 'millrace-worker').spec.metrics[0].external
  assert.ok(isMetric(external.metric.name))
  assert.is(jetstream.metadata.stream, STREAM)
  assert.is(jetstream.metadata.consumer, CONSUMER)
  assert.match(read('deploy/nats-permissions.conf'), new RegExp(`^ {2}${jetstream.metadata.account} \\{$`, 'm'))
  const scaled = of('ScaledObject')[0].spec
  assert.is(scaled.minReplicaCount, named('Deployment', 'millrace-worker').spec.replicas)
})

test.run()

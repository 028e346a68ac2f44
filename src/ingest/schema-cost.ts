/**
 * How often a JSON Schema looks at one and the same value. Applied in place (allOf, $ref, if ...), schemas can refer to
 * themselves without end, or double with each of thirty definitions: what takes one line to write takes a process down.
 */

type Node = Record<string, unknown>

const LISTS = ['allOf', 'anyOf', 'oneOf']
const SINGLES = ['not', 'if', 'then', 'else']
const MAPS = ['dependentSchemas', 'dependencies']
const REFERENCES = ['$ref', '$dynamicRef', '$recursiveRef']

/** @returns why the schema must not be used, or undefined */
export function findRunaway(root: object, looksMax: number): string | undefined {
  const nodes: Node[] = []
  const nested = collect(root as Node, nodes)
  if (nested) return 'a nested $id is not supported'
  const anchors = new Map(
    nodes.flatMap((node) => [node.$anchor, node.$dynamicAnchor].map((name) => [name, node] as const)),
  )
  const looks = new Map<Node, number>()
  const open = new Set<Node>()

  /** Of `node` and all it applies in place; Infinity for one that comes back to itself. */
  function count(node: unknown): number {
    if (!isNode(node)) return 0
    const known = looks.get(node)
    if (known !== undefined) return known
    if (open.has(node)) return Number.POSITIVE_INFINITY
    open.add(node)
    let sum = 1
    for (const name of LISTS) if (Array.isArray(node[name])) for (const each of node[name]) sum += count(each)
    for (const name of SINGLES) sum += count(node[name])
    for (const name of MAPS) if (isNode(node[name])) for (const each of Object.values(node[name])) sum += count(each)
    for (const name of REFERENCES) if (typeof node[name] === 'string') sum += count(resolve(node[name]))
    open.delete(node)
    looks.set(node, sum)
    return sum
  }

  /** Undefined for what is not in this document: the compiler refuses it, but for the meta-schemas. */
  function resolve(reference: string): unknown {
    const id = String((root as Node).$id ?? '')
    const [document, fragment = ''] = reference.split('#', 2)
    if (document !== '' && document !== id) return undefined
    if (fragment === '') return root
    if (!fragment.startsWith('/')) return anchors.get(fragment)
    let at: unknown = root
    for (const token of fragment.slice(1).split('/')) at = (at as Node | undefined)?.[decodeToken(token)]
    return at
  }

  const worst = nodes.reduce((most, node) => Math.max(most, count(node)), 0)
  if (worst === Number.POSITIVE_INFINITY) return 'it refers to itself without going down into the data'
  return worst > looksMax ? `its references multiply: it looks at one value more than ${looksMax} times` : undefined
}

const isNode = (value: unknown): value is Node => typeof value === 'object' && value !== null && !Array.isArray(value)

/** A token of a JSON pointer in a URI fragment. */
function decodeToken(token: string): string {
  try {
    return decodeURIComponent(token).replaceAll('~1', '/').replaceAll('~0', '~')
  } catch {
    return token
  }
}

/** All objects of the document; true when one beneath the root has an $id of its own, which changes what references mean. */
function collect(value: unknown, into: Node[]): boolean {
  if (typeof value !== 'object' || value === null) return false
  if (isNode(value)) into.push(value)
  let nested = into.length > 1 && isNode(value) && typeof value.$id === 'string'
  for (const child of Object.values(value)) nested = collect(child, into) || nested
  return nested
}

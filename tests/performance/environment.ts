/** A whole number above 0 from the environment. @throws Error that says what to do */
export function positive(name: string, fallback: number): number {
  const value = Number(process.env[name] || fallback)
  if (!(value > 0 && Number.isInteger(value)))
    throw new Error(`${name}=${process.env[name]}: say a whole number above 0`)
  return value
}

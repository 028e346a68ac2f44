/**
 * Does it every `ms`, never twice at once.
 * @returns ends it; resolves when what is under way is through
 */
export function repeat(ms: number, act: () => Promise<void>, onError: (error: unknown) => void): () => Promise<void> {
  let acting: Promise<void> | null = null
  const timer = setInterval(() => {
    acting ??= act()
      .catch(onError)
      .finally(() => {
        acting = null
      })
  }, ms)
  return async () => {
    clearInterval(timer)
    await acting
  }
}

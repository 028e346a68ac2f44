/** Sends a message by the webhook of your chat or mail; without one, to the log. The key lets it drop a repeated one. */
export async function notify(key: string, to: string, text: string, signal: AbortSignal): Promise<void> {
  const url = process.env.WEBHOOK_URL
  if (url === undefined) return console.log(`to ${to}: ${text}`)
  const answer = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'idempotency-key': key },
    body: JSON.stringify({ to, text }),
    signal,
  })
  if (!answer.ok) throw new Error(`the webhook answered ${answer.status}`)
}

/** Sends a message by the webhook of your chat or mail. The key lets it drop a message that it has already sent. */
export async function notify(key: string, to: string, text: string, signal: AbortSignal): Promise<void> {
  const answer = await fetch(process.env.WEBHOOK_URL ?? 'http://127.0.0.1:9090/notify', {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'idempotency-key': key },
    body: JSON.stringify({ to, text }),
    signal,
  })
  if (!answer.ok) throw new Error(`the webhook answered ${answer.status}`)
}

/** What must stand in no log, span, error or answer. */

/** An API key, what stands before the @ of an address, what a header or a setting says of itself that it is secret. */
const SECRETS: [RegExp, string][] = [
  [/\bmr_([0-9a-f]{12})_[\w-]{20,}/g, 'mr_$1_***'],
  // Bounded, so that no text makes it slow. Up to the last @: a password with an @ or a slash in it must not end it early.
  [/(\b[a-z][a-z0-9+.-]{0,20}:\/\/)[^\s"']{0,512}@/gi, '$1***@'],
  [/\b(bearer|basic)\s+[\w.~+/=-]{8,}/gi, '$1 ***'],
  // To the end of its quotes, which a line of JSON writes with a backslash, or of the word.
  [
    /\b(password|passwd|secret|token|api_?key)(\\?["']?\s*[=:]\s*\\?["']?)((?<=")[^"\\]+|(?<=')[^'\\]+|[^\s&"',;}\\]+)/gi,
    '$1$2***',
  ],
]

/** A text from anywhere, such as the message of another's error, with three stars in place of what looks like a secret. */
export function withoutSecrets(text: string): string {
  let clean = text
  for (const [pattern, stars] of SECRETS) clean = clean.replace(pattern, stars)
  return clean
}

/** What JSON.parse has against a text, without the piece of the text that V8 quotes. */
export const jsonProblem = (error: unknown): string =>
  (error as Error).message.replace(/,? ?(\.\.\.)?"[\s\S]*"(\.\.\.)? is not valid JSON$/, ' in JSON')

/** The work every contestant does: three trivial async steps that return small JSON, and the result they must give. */

export type Order = { id: string; amount: number }
export type Receipt = { id: string; total: number; parcel: string; steps: number }

export const reserve = async (order: Order) => ({ reserved: order.id, amount: order.amount })
export const charge = async (held: { amount: number }) => ({ charged: held.amount + 1 })
export const ship = async (paid: { charged: number }) => ({ parcel: `p${paid.charged}` })

export const receiptOf = (
  held: { reserved: string },
  paid: { charged: number },
  sent: { parcel: string },
): Receipt => ({ id: held.reserved, total: paid.charged, parcel: sent.parcel, steps: 3 })

export function checkReceipt(order: Order, receipt: Receipt): void {
  const { id, amount } = order
  if (receipt.id !== id || receipt.total !== amount + 1 || receipt.parcel !== `p${amount + 1}` || receipt.steps !== 3)
    throw new Error(`wrong result for ${JSON.stringify(order)}: ${JSON.stringify(receipt)}`)
}

/** What the long run returns: the time, read inside a step, after every thousandth step. */
export type StepTimes = { steps: number; sum: number; marks: number[] }

/** The step of the long run: its own number, and the time at every thousandth. */
export const longStep = async (n: number) => ({ n, at: n % 1_000 === 0 ? Date.now() : 0 })

/**
 * An expense that a person must approve. It waits for days without holding any memory, reminds the approver, and
 * declines by itself in the end.
 */

import { workflow } from 'millrace'
import { notify } from './notify.ts'

type Expense = { expenseId: string; employee: string; approver: string; amount: number; remindAfter?: string }
type Decision = { approved: boolean; by: string; reason?: string }

const SMALL = 50
const REMINDERS = 2

export const approveExpense = workflow(
  'approve-expense',
  { on: { event: 'expense.submitted', key: (event) => event.data.expenseId } },
  async (run, expense: Expense): Promise<Decision> => {
    const { expenseId, employee, approver, amount, remindAfter = '1d' } = expense
    if (amount <= SMALL) return { approved: true, by: 'the rule for small amounts' }

    const tell = (step: string, to: string, text: string) =>
      run.step(step, ({ key, signal }) => notify(key, to, text, signal), { retry: { attempts: 10 }, timeout: '10s' })

    await tell('ask', approver, `${employee} asks for ${amount} (${expenseId})`)
    run.setState({ waitingFor: approver, reminders: 0 })
    let decision: Decision | null = await run.signal('decision', { timeout: remindAfter })
    for (let reminders = 1; decision === null && reminders <= REMINDERS; reminders++) {
      await tell(`remind ${reminders}`, approver, `${employee} still waits for a decision on ${amount} (${expenseId})`)
      run.setState({ waitingFor: approver, reminders })
      decision = await run.signal('decision', { timeout: remindAfter })
    }
    decision ??= { approved: false, by: 'nobody', reason: `no decision after ${REMINDERS} reminders` }

    const outcome = decision.approved ? 'approved' : 'declined'
    await tell('answer', employee, `Your expense ${expenseId} was ${outcome} by ${decision.by}`)
    run.setState({ outcome })
    return decision
  },
)

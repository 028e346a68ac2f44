/** The public library: define workflows, and start, watch and steer them. */

export type { Duration } from './durations.ts'
export { MillraceError } from './errors.ts'
export type { Retry } from './workflow/backoff.ts'
export { findRun, type Handle, type RunStatus, startRun, startRunIn } from './workflow/client.ts'
export { type Client, type ConnectOptions, connect } from './workflow/connect.ts'
export type { Run } from './workflow/context.ts'
export { type Trigger, type Workflow, type WorkflowOptions, workflow } from './workflow/define.ts'
export { type Engine, type EngineDeps, type EngineOptions, startEngine } from './workflow/engine.ts'
export type { ChildOptions, WaitOptions, WorkflowEvent } from './workflow/incoming.ts'
export { type LimitedQueue, listLimits, type QueueLimits, removeLimits, setLimits } from './workflow/limits.ts'
export type { ExportedHistory, RunFilter, RunSummary } from './workflow/runs.ts'
export {
  backfillSchedule,
  getSchedule,
  listSchedules,
  pauseSchedule,
  removeSchedule,
  type Schedule,
  type ScheduleSpec,
  setSchedule,
  triggerSchedule,
  watchSchedules,
} from './workflow/schedules.ts'
export type { StartOptions } from './workflow/start.ts'
export { nonRetryable, type StepOptions, type StepTools } from './workflow/step.ts'

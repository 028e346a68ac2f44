/**
 * Names of the OpenTelemetry semantic conventions that are not stable yet. The package asks that these be copied rather
 * than imported, and the module that holds them costs 11 MB; a test compares each with semantic-conventions 1.45.
 */

export const ATTR_MESSAGING_SYSTEM_NAME = 'messaging.system.name'
export const ATTR_MESSAGING_OPERATION_NAME = 'messaging.operation.name'
export const ATTR_MESSAGING_OPERATION_TYPE = 'messaging.operation.type'
export const ATTR_MESSAGING_DESTINATION_NAME = 'messaging.destination.name'
export const ATTR_MESSAGING_DESTINATION_SUBSCRIPTION_NAME = 'messaging.destination.subscription.name'
export const ATTR_MESSAGING_BATCH_MESSAGE_COUNT = 'messaging.batch.message_count'
export const ATTR_MESSAGING_CLIENT_ID = 'messaging.client.id'
export const ATTR_MESSAGING_MESSAGE_ID = 'messaging.message.id'
export const ATTR_CLOUDEVENTS_EVENT_ID = 'cloudevents.event_id'
export const ATTR_CLOUDEVENTS_EVENT_SOURCE = 'cloudevents.event_source'

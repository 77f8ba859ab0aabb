//! What a topic is at this moment: its id, its partitions, its replicas.
//!
//! The only module that calls librdkafka itself: `rdkafka` does not wrap DescribeTopics, which alone tells the id.
#![allow(unsafe_code)]

use click::{LogId, Partition};
use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use std::ffi::CString;
use std::ptr::NonNull;
use std::time::Duration;

/// A topic as a broker describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub log_id: LogId,
    pub partitions: Partition,
    /// The fewest replicas that a partition has.
    pub replicas_min: usize,
}

/// Asks a broker, not a cache, for a topic. Blocks for at most a little more than `wait`.
pub fn describe<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    wait: Duration,
) -> Result<Described, RDKafkaErrorCode> {
    let name = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
    // The client outlives this call, and everything made from it here is destroyed before it returns.
    let client = client.native_ptr();
    let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX / 2).min(i32::MAX / 2);
    let mut names = [name.as_ptr()];
    // SAFETY: `names` holds one pointer to a string that ends with NUL and outlives the call; librdkafka copies it.
    let topics = unsafe { sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()) };
    let topics = Owned::new(topics, sys::rd_kafka_TopicCollection_destroy)?;
    // SAFETY: `client` is a live handle.
    let options =
        unsafe { sys::rd_kafka_AdminOptions_new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS) };
    let options = Owned::new(options, sys::rd_kafka_AdminOptions_destroy)?;
    let mut error = [0; 256];
    // SAFETY: `options` is live, and `error` is as long as is said.
    let set = unsafe {
        sys::rd_kafka_AdminOptions_set_request_timeout(options.ptr(), wait_ms, error.as_mut_ptr(), error.len())
    };
    checked(set)?;
    // SAFETY: `client` is a live handle.
    let queue = Owned::new(unsafe { sys::rd_kafka_queue_new(client) }, sys::rd_kafka_queue_destroy)?;
    // SAFETY: all four are live; librdkafka keeps its own reference to the queue and copies the rest.
    unsafe { sys::rd_kafka_DescribeTopics(client, topics.ptr(), options.ptr(), queue.ptr()) };
    // The request times out by itself; the second more is for its answer to come through.
    // SAFETY: `queue` is live. The event is owned by the caller, and null when none came.
    let event = unsafe { sys::rd_kafka_queue_poll(queue.ptr(), wait_ms + 1_000) };
    let event = Owned::new(event, sys::rd_kafka_event_destroy).map_err(|_| RDKafkaErrorCode::OperationTimedOut)?;
    // SAFETY: `event` is live; nothing that is read from it outlives it.
    unsafe { read(event.ptr()) }
}

/// Reads the first topic out of an answer.
///
/// # Safety
///
/// `event` must be a live event. Everything that is reached through it belongs to it.
unsafe fn read(event: *mut sys::rd_kafka_event_t) -> Result<Described, RDKafkaErrorCode> {
    // SAFETY: the caller's event is live for the whole call, librdkafka checks its type and answers null if it is
    // another, and arrays have the length that librdkafka gives with them.
    unsafe {
        checked(sys::rd_kafka_event_error(event))?;
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(RDKafkaErrorCode::InvalidType);
        }
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if topics.is_null() || count == 0 {
            return Err(RDKafkaErrorCode::UnknownTopicOrPartition);
        }
        let topic = *topics;
        checked(sys::rd_kafka_error_code(sys::rd_kafka_TopicDescription_error(topic)))?;
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        if id.is_null() {
            return Err(RDKafkaErrorCode::UnknownTopicId);
        }
        let (high, low) = (sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id));
        let id = u128::from(high as u64) << 64 | u128::from(low as u64);
        let mut partitions = 0;
        let infos = sys::rd_kafka_TopicDescription_partitions(topic, &mut partitions);
        let replicas = (0..partitions).map(|i| {
            let mut replicas = 0;
            sys::rd_kafka_TopicPartitionInfo_replicas(*infos.add(i), &mut replicas);
            replicas
        });
        let replicas_min = replicas.min().unwrap_or(0);
        let partitions = Partition::try_from(partitions).unwrap_or(Partition::MAX);
        Ok(Described { log_id: LogId::from_bytes(id.to_be_bytes()), partitions, replicas_min })
    }
}

fn checked(code: sys::rd_kafka_resp_err_t) -> Result<(), RDKafkaErrorCode> {
    match code.into() {
        RDKafkaErrorCode::NoError => Ok(()),
        code => Err(code),
    }
}

/// Something of librdkafka's that is destroyed when this is dropped.
struct Owned<T> {
    ptr: NonNull<T>,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    fn new(ptr: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Result<Self, RDKafkaErrorCode> {
        let ptr = NonNull::new(ptr).ok_or(RDKafkaErrorCode::CriticalSystemResource)?;
        Ok(Owned { ptr, destroy })
    }

    fn ptr(&self) -> *mut T {
        self.ptr.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the constructor that goes with `destroy`, and is dropped once.
        unsafe { (self.destroy)(self.ptr.as_ptr()) }
    }
}

/// Makes a producer believe that it lost its idempotence.
#[cfg(test)]
pub fn provoke_fatal_error<C: ClientContext>(client: &Client<C>) {
    let code = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    // SAFETY: the client is live, and the text ends with NUL.
    unsafe { sys::rd_kafka_test_fatal_error(client.native_ptr(), code, c"provoked by a test".as_ptr()) };
}

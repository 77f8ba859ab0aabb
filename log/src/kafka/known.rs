//! The topics that are in use, looked at again and again: one that was made anew takes nothing that was meant for the
//! one before it, once that is seen.

use super::query::{Query, same};
use super::{Context, blocking};
use crate::{LogError, Topic};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use tokio::sync::Semaphore;

/// A topic that is appended to.
pub struct Known {
    pub topic: Topic,
    pub name: Arc<str>,
    /// Bytes that may still be in flight, by partition.
    pub rooms: Vec<Arc<Semaphore>>,
}

/// What was last seen of a topic.
type Seen = Result<Arc<Known>, LogError>;

pub struct Topics {
    shared: Arc<Shared>,
}

struct Shared {
    context: Arc<Context>,
    query: Arc<Query>,
    seen: RwLock<HashMap<String, Seen>>,
    stopped: Mutex<bool>,
    stop: Condvar,
}

impl Topics {
    /// Starts the thread that looks.
    pub fn new(context: Arc<Context>, query: Arc<Query>) -> Result<Self, LogError> {
        let shared = Arc::new(Shared {
            context,
            query,
            seen: RwLock::default(),
            stopped: Mutex::new(false),
            stop: Condvar::new(),
        });
        let looking = shared.clone();
        // It ends by itself, at the latest when the broker that it asks has not answered in time.
        let thread = std::thread::Builder::new().name("kafka-topics".into()).spawn(move || looking.run());
        thread.map_err(|error| shared.context.failed("start the thread that looks at topics", error))?;
        Ok(Topics { shared })
    }

    /// Asks for a topic now.
    pub async fn fresh(&self, name: &str) -> Result<Topic, LogError> {
        let (shared, name) = (self.shared.clone(), name.to_owned());
        blocking(move || {
            let found = shared.query.topic(&name)?;
            Ok(shared.note(found).topic.clone())
        })
        .await
    }

    /// The topic, if it was the same one when it was last looked at.
    pub async fn known(&self, topic: &Topic) -> Seen {
        let seen = self.shared.get(&topic.name);
        let known = match seen {
            Some(seen) => seen?,
            None => {
                self.fresh(&topic.name).await?;
                self.shared.get(&topic.name).ok_or_else(|| LogError::UnknownTopic(topic.name.clone()))??
            }
        };
        same(topic, &known.topic)?;
        Ok(known)
    }
}

impl Shared {
    fn get(&self, name: &str) -> Option<Seen> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn set(&self, name: &str, seen: Seen) {
        self.seen.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), seen);
    }

    /// Takes a topic into use, or goes on with it. What is in flight to it stays counted.
    fn note(&self, found: Topic) -> Arc<Known> {
        if let Some(Ok(known)) = self.get(&found.name)
            && known.topic == found
        {
            return known;
        }
        let room = || Arc::new(Semaphore::new(self.context.settings.in_flight_bytes_max as usize));
        let rooms = (0..found.partitions).map(|_| room()).collect();
        let known = Arc::new(Known { name: found.name.as_str().into(), topic: found, rooms });
        self.set(&known.topic.name, Ok(known.clone()));
        known
    }

    fn run(&self) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        while !*stopped {
            let every = self.context.settings.check_every;
            stopped = self.stop.wait_timeout(stopped, every).unwrap_or_else(PoisonError::into_inner).0;
            if *stopped {
                break;
            }
            drop(stopped);
            self.look();
            stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn look(&self) {
        self.query.serve();
        let names: Vec<String> = self.seen.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        for name in names {
            let before = self.get(&name);
            match self.query.topic(&name) {
                Ok(found) => {
                    if let Some(Ok(known)) = &before
                        && let Err(error) = same(&known.topic, &found)
                    {
                        tracing::error!(%error, "appends to the older topic are refused from here on");
                    }
                    self.note(found);
                }
                Err(error @ (LogError::UnknownTopic(_) | LogError::PartitionsChanged { .. })) => {
                    if let Some(Ok(_)) = before {
                        tracing::error!(%error, "appends are refused until the topic is as it was");
                    }
                    self.set(&name, Err(error));
                }
                // A broker that does not answer says nothing about the topic.
                Err(error) => tracing::debug!(%error, "the topic could not be looked at"),
            }
        }
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        *self.shared.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.stop.notify_all();
    }
}

//! The asynchronous interface, of `claim_click`: an operator is started, sent one record at a time, and looked at for
//! answers now and then.

use arroyo_udf_plugin::arrow::array::{Array, ArrayData, Int32Array, Int64Array, StringArray, UInt64Array};
use arroyo_udf_plugin::async_udf::async_ffi::FfiFuture;
use arroyo_udf_plugin::async_udf::{DrainResult, SendableFfiAsyncUdfHandle};
use arroyo_udf_plugin::FfiArrays;
use libloading::Library;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What `#[udf(…)]` of the file says; Arroyo reads it there, and tells the library. A test compares.
pub const ALLOWED_IN_FLIGHT: u32 = 4096;
pub const TIMEOUT: Duration = Duration::from_secs(8760 * 3600);

/// The arguments of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub key: Option<String>,
    pub log_id: String,
    pub partition: i32,
    pub offset: i64,
    pub appended_ms: i64,
    pub version: i64,
}

impl Asked {
    fn arrays(&self) -> Vec<ArrayData> {
        let long = |value| Int64Array::from(vec![value]).to_data();
        vec![
            StringArray::from(vec![self.key.as_deref()]).to_data(),
            StringArray::from(vec![self.log_id.as_str()]).to_data(),
            Int32Array::from(vec![self.partition]).to_data(),
            long(self.offset),
            long(self.appended_ms),
            long(self.version),
        ]
    }
}

/// The id of what was asked, and its answer.
pub type Answer = (u64, Option<i64>);

/// The library of `claim_click`. All operators of a process share what is static in it.
pub struct ClaimLibrary(Arc<Library>);

impl ClaimLibrary {
    /// Opens a library that was built from the UDF's file.
    ///
    /// # Errors
    /// If there is no such library, or it cannot be loaded.
    pub fn open(library: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: the libraries of this workspace run nothing when they are loaded.
        unsafe { Library::new(library) }.map(|library| ClaimLibrary(Arc::new(library)))
    }

    /// Starts an operator, as one subtask of a pipeline does.
    ///
    /// # Errors
    /// If the library has no `__start`.
    pub fn start(&self) -> Result<Operator, libloading::Error> {
        // SAFETY: `__start` has this signature in arroyo-udf-plugin 0.2.0, the version that this crate is built with.
        let handle = unsafe {
            let start =
                self.0.get::<unsafe extern "C-unwind" fn(bool, u64, u32) -> SendableFfiAsyncUdfHandle>(b"__start")?;
            start(true, TIMEOUT.as_micros() as u64, ALLOWED_IN_FLIGHT)
        };
        Ok(Operator { library: self.0.clone(), handle })
    }
}

/// One running operator. Stopped when dropped: what it has not answered is never answered.
pub struct Operator {
    library: Arc<Library>,
    handle: SendableFfiAsyncUdfHandle,
}

impl Operator {
    /// Hands a record over; its answer will carry `id`. Waits while too many are in flight.
    ///
    /// # Errors
    /// If the library has no `__send`, or the operator has ended.
    pub async fn send(&self, id: u64, asked: &Asked) -> Result<(), Box<dyn std::error::Error>> {
        // SAFETY: `__send` has this signature in arroyo-udf-plugin 0.2.0; the handle lives until this is dropped; the
        // arrays are the library's from here on, and it frees them.
        let sent = unsafe {
            let send = self.library.get::<unsafe extern "C-unwind" fn(
                SendableFfiAsyncUdfHandle,
                u64,
                FfiArrays,
            ) -> FfiFuture<bool>>(b"__send")?;
            send(self.handle, id, FfiArrays::from_vec(asked.arrays()))
        };
        match sent.await {
            true => Ok(()),
            false => Err("the operator has ended".into()),
        }
    }

    /// The answers since it was last looked at, with the ids of what was asked.
    ///
    /// # Errors
    /// If the library has no `__drain_results`, or the operator panicked.
    pub fn drain(&self) -> Result<Vec<Answer>, Box<dyn std::error::Error>> {
        // SAFETY: `__drain_results` has this signature in arroyo-udf-plugin 0.2.0; the handle lives until this is dropped.
        let drained = unsafe {
            let drain = self
                .library
                .get::<unsafe extern "C-unwind" fn(SendableFfiAsyncUdfHandle) -> DrainResult>(b"__drain_results")?;
            drain(self.handle)
        };
        match drained {
            DrainResult::None => Ok(Vec::new()),
            DrainResult::Error => Err("the operator panicked".into()),
            DrainResult::Data(arrays) => {
                let mut arrays = arrays.into_vec().into_iter();
                let (Some(ids), Some(answers)) = (arrays.next(), arrays.next()) else {
                    return Err("no two columns".into());
                };
                let (ids, answers) = (UInt64Array::from(ids), Int64Array::from(answers));
                Ok(ids.values().iter().copied().zip(answers.iter()).collect())
            }
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // SAFETY: `__stop_runtime` has this signature in arroyo-udf-plugin 0.2.0, and is called once for the handle.
        unsafe {
            if let Ok(stop) =
                self.library.get::<unsafe extern "C-unwind" fn(SendableFfiAsyncUdfHandle)>(b"__stop_runtime")
            {
                stop(self.handle);
            }
        }
    }
}

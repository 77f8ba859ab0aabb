//! Calls a UDF through the C interface that Arroyo's `#[udf]` generates, as Arroyo's workers do: the library is opened
//! at run time, arguments and results are Arrow 51 arrays.

mod claims;

pub use claims::{Answer, Asked, ClaimLibrary, Operator, ALLOWED_IN_FLIGHT, TIMEOUT};

use arroyo_udf_plugin::arrow::array::{Array, StringArray};
use arroyo_udf_plugin::arrow::ffi::from_ffi;
use arroyo_udf_plugin::{FfiArraySchema, FfiArrays, RunResult};
use libloading::Library;
use std::path::Path;

/// The library of a UDF with one text argument and a text result.
pub struct TextUdf(Library);

impl TextUdf {
    /// Opens a library that was built from a UDF's file.
    ///
    /// # Errors
    /// If there is no such library, or it cannot be loaded.
    pub fn open(library: &Path) -> Result<TextUdf, libloading::Error> {
        // SAFETY: the libraries of this workspace run nothing when they are loaded.
        unsafe { Library::new(library) }.map(TextUdf)
    }

    /// Calls the function on a batch, one row an argument; `None` is NULL.
    ///
    /// # Errors
    /// If the library has no `__run`, or the function panicked.
    pub fn call<'a>(
        &self,
        arguments: impl IntoIterator<Item = Option<&'a str>>,
    ) -> Result<Vec<Option<String>>, Box<dyn std::error::Error>> {
        let arguments: StringArray = arguments.into_iter().collect();
        // SAFETY: `__run` has this signature in arroyo-udf-plugin 0.2.0, the version that this crate is built with. The
        // arrays are the function's from here on, and it frees them.
        let result = unsafe {
            let run = self.0.get::<unsafe extern "C-unwind" fn(FfiArrays) -> RunResult>(b"__run")?;
            run(FfiArrays::from_vec(vec![arguments.to_data()]))
        };
        let RunResult::Ok(FfiArraySchema(array, schema)) = result else {
            return Err("the function panicked".into());
        };
        // SAFETY: the plugin made both from one array just now, and nothing else holds them.
        let answers = StringArray::from(unsafe { from_ffi(array, &schema) }?);
        Ok(answers.iter().map(|answer| answer.map(str::to_string)).collect())
    }
}

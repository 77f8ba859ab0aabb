//! The `#[udf]` of a linked function.
//!
//! Arroyo compiles each UDF file into a library of its own, in which `#[udf]` of `arroyo-udf-plugin` adds a C interface
//! over Arrow 51. A program that links the same file wants none of that: here `#[udf]` changes nothing.

use proc_macro::TokenStream;

/// Leaves the function as it is.
#[proc_macro_attribute]
pub fn udf(_arguments: TokenStream, function: TokenStream) -> TokenStream {
    function
}

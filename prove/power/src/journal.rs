//! The journal: one line a change, `what field field …`, and after a line that says `bytes=n` so many bytes and a line feed.
//!
//! ```text
//! write INO OFFSET LENGTH OLD_SIZE bytes=n      what stood there before, as far as the file reached
//! size INO OLD_SIZE NEW_SIZE bytes=n            what was cut off
//! sync INO KIND                                 what came before is durable: bytes of a file, names of a folder
//! skipped INO KIND                              the program asked for it, and it was left out
//! failed INO                                    an fsync of a file failed: what came before is never durable
//! create PARENT INO NAME                        a file or folder, or one more name of a file
//! remove PARENT INO NAME                        kept as SAVED/INO; a folder was empty
//! rename PARENT INO REPLACED NEW_PARENT NAME/NEW_NAME   REPLACED is 0, or kept as SAVED/REPLACED
//! died N WHAT
//! ```

use crate::calls::real;
use crate::state::fail;
use std::ffi::CStr;

pub struct Journal(i32);

impl Journal {
    pub fn open(path: &CStr) -> Journal {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
        // SAFETY: the path ends with a zero byte and lives long enough.
        let fd = unsafe { (real::open())(path.as_ptr(), flags, 0o600) };
        if fd < 0 {
            fail("the journal cannot be opened");
        }
        Journal(fd)
    }

    pub fn note(&mut self, line: &str) {
        self.put(format!("{line}\n").as_bytes());
    }

    pub fn note_bytes(&mut self, line: &str, bytes: &[u8]) {
        let mut all = format!("{line} bytes={}\n", bytes.len()).into_bytes();
        all.extend_from_slice(bytes);
        all.push(b'\n');
        self.put(&all);
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // SAFETY: the slice is as long as it says.
            let done = unsafe { (real::write())(self.0, bytes.as_ptr().cast(), bytes.len()) };
            match usize::try_from(done) {
                Ok(done) if done > 0 => bytes = &bytes[done..],
                _ => fail("the journal cannot be written"),
            }
        }
    }
}

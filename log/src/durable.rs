//! Files that are on disk when a call returns.
//!
//! A file is durable when it was fsynced *and* the folder that names it was. Every operation on the product's durable
//! files goes through this module, so that there is one place to see what was asked of the disk, and in which order.

pub mod checked;

use crate::LogError;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What could not be done, and to which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {error}", .path.display())]
pub struct FileError {
    pub doing: &'static str,
    pub path: PathBuf,
    pub error: io::Error,
}

impl FileError {
    pub fn kind(&self) -> io::ErrorKind {
        self.error.kind()
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        io::Error::new(error.kind(), error)
    }
}

impl From<FileError> for LogError {
    fn from(FileError { doing, path, error }: FileError) -> Self {
        LogError::Io { path, error: Arc::new(io::Error::new(error.kind(), format!("cannot {doing} it: {error}"))) }
    }
}

type Result<T> = std::result::Result<T, FileError>;

/// Names the operation and the path of an I/O error.
fn at<T>(doing: &'static str, path: &Path, result: io::Result<T>) -> Result<T> {
    result.map_err(|error| FileError { doing, path: path.to_path_buf(), error })
}

/// An open file whose errors name it. It has no cursor: every read and write says where.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    path: PathBuf,
}

impl File {
    /// Opens a file to read.
    pub fn open(path: &Path) -> Result<File> {
        Ok(File { file: at("open", path, fs::File::open(path))?, path: path.to_path_buf() })
    }

    /// Opens a file that exists to read and write.
    pub fn open_to_write(path: &Path) -> Result<File> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path);
        Ok(File { file: at("open", path, file)?, path: path.to_path_buf() })
    }

    /// Makes a file that does not exist yet, to read and write.
    pub fn create_new(path: &Path) -> Result<File> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path);
        Ok(File { file: at("create", path, file)?, path: path.to_path_buf() })
    }

    /// Opens a lock file, made if there is none, and takes its lock until the file is dropped. `None` when another
    /// process has it.
    pub fn lock(path: &Path) -> Result<Option<File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = at("open", path, file)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(File { file, path: path.to_path_buf() })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => at("lock", path, Err(error)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> Result<u64> {
        Ok(at("look at", &self.path, self.file.metadata())?.len())
    }

    /// Cuts it, or lengthens it with zeros.
    pub fn set_len(&self, bytes: u64) -> Result<()> {
        at("set the length of", &self.path, self.file.set_len(bytes))
    }

    /// Fills `buffer` with what stands at `offset`.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        at("read", &self.path, self.file.read_exact_at(buffer, offset))
    }

    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        at("write", &self.path, self.file.write_all_at(bytes, offset))
    }

    /// Makes its bytes and its length durable. After an error the kernel may have dropped what was not on disk yet
    /// and say yes the next time: **an fsync that failed is never tried again**.
    pub fn sync(&self) -> Result<()> {
        at("sync", &self.path, self.file.sync_data())
    }
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    at("read", path, fs::read(path))
}

/// The paths in a folder, sorted.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries: io::Result<Vec<PathBuf>> =
        fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths = at("list", dir, entries)?;
    paths.sort();
    Ok(paths)
}

/// Makes the names in a folder durable: what was created, renamed or removed in it.
pub fn sync_dir(dir: &Path) -> Result<()> {
    at("sync", dir, fs::File::open(dir).and_then(|dir| dir.sync_all()))
}

/// Renames within one folder and makes it durable. What `to` was before is replaced.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    at("rename", from, fs::rename(from, to))?;
    sync_dir(folder_of(to))
}

/// Gives a file one more name, and makes that durable. It may have it already: whoever gave it may have died before this.
pub fn link(file: &Path, name: &Path) -> Result<()> {
    match fs::hard_link(file, name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => at("link", file, result)?,
    }
    sync_dir(folder_of(name))
}

/// Removes a file. Not durable before the folder is synced.
pub fn remove_file(path: &Path) -> Result<()> {
    at("remove", path, fs::remove_file(path))
}

/// Removes a folder and everything in it. Not durable before the folder that names it is synced.
pub fn remove_dir_all(path: &Path) -> Result<()> {
    at("remove", path, fs::remove_dir_all(path))
}

/// Makes a folder and all above it that are missing, each durable. It may exist already: whoever made it may have died before
/// its name was durable, and what is put into it would be gone with it. What is above one that has a folder in it is durable,
/// since each is before the next is made.
pub fn create_dir_all(dir: &Path) -> Result<()> {
    let above = folder_of(dir);
    if dir.is_dir() {
        return match sync_dir(above) {
            // Who may not read it did not make the folder in it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        };
    }
    if above != dir {
        create_dir_all(above)?;
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        result => at("create", dir, result)?,
    }
    sync_dir(above)
}

/// Makes a folder in one that is there. Not durable before that is synced.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    at("create", dir, fs::create_dir(dir))
}

/// Writes a file so that, whatever happens, there is either all of the new or all of the old one.
pub fn write_aside(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = write_temporary(path, bytes)?;
    rename(&aside, path)
}

/// The same; but which of the two is not certain before the folder is synced.
pub fn write_aside_unsynced(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = write_temporary(path, bytes)?;
    at("rename", &aside, fs::rename(&aside, path))
}

/// Writes a file that must not exist yet: put if absent. Of several callers, also in several processes, one gets
/// `Ok` and all others an error of kind [`io::ErrorKind::AlreadyExists`]; in either case the file is durable.
pub fn create_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = write_temporary(path, bytes)?;
    place_new(&aside, path)
}

fn place_new(aside: &Path, path: &Path) -> Result<()> {
    let linked = at("create", path, fs::hard_link(aside, path));
    remove_file(aside)?;
    // Also when it was taken: whoever took it may have died before this.
    sync_dir(folder_of(path))?;
    linked
}

/// The same, for a file that only its owner may read.
pub fn create_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = aside(path);
    // Readable by nobody else from the moment it is there.
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
    write_whole(at("create", &aside, file)?, &aside, bytes)?;
    place_new(&aside, path)
}

/// Ends the name of a file that is not in place yet.
const ASIDE: &str = ".aside";

/// Removes what a process that died left in a folder: files that were not yet in place. Nobody else may be writing
/// files aside in it.
pub fn remove_leftovers(dir: &Path) -> Result<()> {
    for path in list(dir)? {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(b".") && name.ends_with(ASIDE.as_bytes()) {
            if path.is_dir() { remove_dir_all(&path)? } else { remove_file(&path)? }
        }
    }
    Ok(())
}

/// A path in the same folder that nobody else uses, for something that is not in place yet.
pub(crate) fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}{ASIDE}", uuid::Uuid::new_v4().simple()))
}

fn write_temporary(path: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let aside = aside(path);
    write_whole(File::create_new(&aside)?.file, &aside, bytes)?;
    Ok(aside)
}

/// Writes a new file and makes it durable, or removes it.
fn write_whole(mut file: fs::File, path: &Path, bytes: &[u8]) -> Result<()> {
    let written = at("write", path, file.write_all(bytes)).and_then(|()| at("sync", path, file.sync_all()));
    if written.is_err() {
        // The first error is the one to tell; the file is swept up by `remove_leftovers` if it cannot be removed now.
        let _ = fs::remove_file(path);
    }
    written
}

/// The folder that names this path.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        assert_eq!(write_aside(&path, b"x").unwrap_err().kind(), io::ErrorKind::NotFound);
        create_dir_all(path.parent().unwrap()).unwrap();
        create_dir_all(path.parent().unwrap()).unwrap();
        write_aside(&path, b"one").unwrap();
        write_aside(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap(), b"two");
        assert_eq!(list(path.parent().unwrap()).unwrap(), [path]);
    }

    #[test]
    fn of_many_that_create_one_file_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7");
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8_u8)
                .map(|n| {
                    let path = &path;
                    scope.spawn(move || create_new(path, &[n; 100]))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let winners: Vec<usize> = (0..8).filter(|n| results[*n].is_ok()).collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(read(&path).unwrap(), [winners[0] as u8; 100]);
        for lost in results.into_iter().filter_map(|result| result.err()) {
            assert_eq!(lost.kind(), io::ErrorKind::AlreadyExists);
            assert!(lost.to_string().contains("/7"), "{lost}");
        }
        assert_eq!(list(dir.path()).unwrap(), [path]);
    }

    #[test]
    fn leftovers_are_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.aside");
        fs::write(&path, "").unwrap();
        fs::write(aside(&path), "").unwrap();
        fs::create_dir(aside(&path)).unwrap();
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [path]);
    }

    #[test]
    fn a_secret_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create_secret(&path, b"secret").unwrap();
        assert_eq!(read(&path).unwrap(), b"secret");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(create_secret(&path, b"other").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(list(dir.path()).unwrap(), [path]);
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = File::lock(&path).unwrap();
        assert!(held.is_some() && File::lock(&path).unwrap().is_none());
        drop(held);
        assert!(File::lock(&path).unwrap().is_some());
    }

    #[test]
    fn an_error_names_what_was_done_to_which_file() {
        let error = File::open(Path::new("/nowhere/x")).unwrap_err();
        assert!(error.to_string().starts_with("cannot open /nowhere/x: "), "{error}");
        assert!(LogError::from(error).to_string().starts_with("/nowhere/x: cannot open it: "));
    }
}

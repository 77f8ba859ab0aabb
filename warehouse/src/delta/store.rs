//! An object store over local folders that is on disk when a call returns. `object_store`'s own one fsyncs nothing:
//! after a power cut a table's log could name a file that is empty, or the log's last entry could be gone.
//!
//! A file gets its name when all of it is on disk: it is written aside, fsynced, then linked (put if absent) or
//! renamed, and the folder is fsynced. Beside each file stand its checksums (`sums`), which lists leave out; every
//! read is compared with them, and fails where bytes are not those that were written.

#![allow(clippy::single_range_in_vec_init, reason = "one range of several that could be asked for")]

use super::sums::{self, BLOCK, PIECE, ReadError, Reader, Summing, Sums};
use faults::Point;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, RenameTargetMode,
    Result, UploadPart,
};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tally_log::durable;

const STORE: &str = "DurableStore";

/// Ends the name of a file that is not in place yet. `durable::remove_leftovers` knows it, and lists leave it out.
const ASIDE: &str = ".aside";

/// Files that are removed together: they share the fsyncs of their folders.
const REMOVED_AT_ONCE: usize = 100;

/// Local files, durable when a call returns. Paths are those of the whole file system.
#[derive(Debug, Default)]
pub(crate) struct DurableStore {
    /// Knows paths, and looks at files. What stands in them is read by [`Reader`] alone.
    files: Arc<LocalFileSystem>,
}

impl DurableStore {
    fn file(&self, location: &Path) -> Result<PathBuf> {
        self.files.path_to_filesystem(location)
    }
}

impl std::fmt::Display for DurableStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(STORE)
    }
}

fn failed(path: &std::path::Path, error: durable::FileError) -> Error {
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: Box::new(error) },
        io::ErrorKind::NotFound => Error::NotFound { path, source: Box::new(error) },
        _ => Error::Generic { store: STORE, source: Box::new(error) },
    }
}

fn unread(path: &std::path::Path, error: ReadError) -> Error {
    match error {
        ReadError::File(error) => failed(path, error),
        error => Error::Generic { store: STORE, source: Box::new(error) },
    }
}

/// Runs file operations where they may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|source| Error::JoinError { source })?
}

fn make_folder(path: &std::path::Path) -> Result<()> {
    match path.parent() {
        // One that is there was made durable when its table was opened, or since then.
        Some(folder) if !folder.is_dir() => durable::create_dir_all(folder).map_err(|error| failed(folder, error)),
        _ => Ok(()),
    }
}

/// Whether a file is one that was put here, and not one of those that make it safe.
fn is_listed(location: &Path) -> bool {
    location.filename().is_some_and(|name| !name.ends_with(ASIDE) && sums::summed(name).is_none())
}

/// Writes a whole file and its sums.
fn put(path: &std::path::Path, bytes: &[u8], replace: bool) -> Result<()> {
    make_folder(path)?;
    // A table's log has a commit a file: what is put there makes what was put before it count.
    let is_commit = path.extension().is_some_and(|extension| extension == "json");
    if is_commit {
        faults::at(Point::DeltaBefore);
    }
    let placed = sums::place(path, &Sums::of(bytes), replace, || durable::create_new(path, bytes));
    placed.map_err(|error| failed(path, error))?;
    if is_commit {
        faults::at(Point::DeltaAfter);
    }
    Ok(())
}

/// Reads a file in pieces, as they are asked for.
fn pieces(path: PathBuf, reader: Reader, range: std::ops::Range<u64>) -> BoxStream<'static, Result<bytes::Bytes>> {
    let state = (Arc::new(reader), Arc::new(path), range.start);
    let piece = move |(reader, path, at): (Arc<Reader>, Arc<PathBuf>, u64)| async move {
        if at >= range.end {
            return Ok(None);
        }
        let end = range.end.min(at - at % BLOCK + PIECE);
        let next = (reader.clone(), path.clone(), end);
        let read = blocking(move || reader.read(&[at..end]).map_err(|error| unread(&path, error))).await?;
        Ok(read.into_iter().next().map(|bytes| (bytes, next)))
    };
    futures::stream::try_unfold(state, piece).boxed()
}

#[async_trait]
impl ObjectStore for DurableStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let path = self.file(location)?;
        let replace = match options.mode {
            PutMode::Overwrite => true,
            PutMode::Create => false,
            PutMode::Update(_) => {
                let operation = "put_opts with PutMode::Update".to_string();
                return Err(Error::NotImplemented { operation, implementer: STORE.to_string() });
            }
        };
        blocking(move || put(&path, &bytes::Bytes::from(payload), replace)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let path = self.file(location)?;
        blocking(move || {
            make_folder(&path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = path.with_file_name(format!(".{name}.{}{ASIDE}", uuid::Uuid::new_v4().simple()));
            let file = durable::File::create_new(&aside).map_err(|error| failed(&aside, error))?;
            let upload = Upload { file: Arc::new(file), path, written: 0, sums: Summing::default() };
            Ok(Box::new(upload) as Box<dyn MultipartUpload>)
        })
        .await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let path = self.file(location)?;
        let found = self.files.get_opts(location, options).await?;
        let (file, range) = (path.clone(), found.range.clone());
        let reader = blocking(move || Reader::open(&file).map_err(|error| unread(&file, error))).await?;
        Ok(GetResult { payload: GetResultPayload::Stream(pieces(path, reader, range)), ..found })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        let (path, ranges) = (self.file(location)?, ranges.to_vec());
        blocking(move || {
            Reader::open(&path).and_then(|reader| reader.read(&ranges)).map_err(|error| unread(&path, error))
        })
        .await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let files = self.files.clone();
        let removed = locations.chunks(REMOVED_AT_ONCE).then(move |locations| {
            let files = files.clone();
            async move {
                match blocking(move || remove(&files, locations)).await {
                    Ok(removed) => removed,
                    Err(error) => vec![Err(error)],
                }
            }
        });
        removed.flat_map(futures::stream::iter).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix).try_filter(|meta| std::future::ready(is_listed(&meta.location))).boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let list = self.files.list_with_offset(prefix, offset);
        list.try_filter(|meta| std::future::ready(is_listed(&meta.location))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut list = self.files.list_with_delimiter(prefix).await?;
        list.objects.retain(|meta| is_listed(&meta.location));
        Ok(list)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (from, to) = (self.file(from)?, self.file(to)?);
        blocking(move || {
            let reader = Reader::open(&from).map_err(|error| unread(&from, error))?;
            let bytes = reader.read(&[0..reader.bytes()]).map_err(|error| unread(&from, error))?.concat();
            put(&to, &bytes, options.mode == CopyMode::Overwrite)
        })
        .await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let copy = match options.target_mode {
            RenameTargetMode::Overwrite => CopyOptions { mode: CopyMode::Overwrite, ..CopyOptions::default() },
            RenameTargetMode::Create => CopyOptions { mode: CopyMode::Create, ..CopyOptions::default() },
        };
        self.copy_opts(from, to, copy).await?;
        let from = from.clone();
        let removed = self.delete_stream(futures::stream::once(async { Ok(from) }).boxed());
        removed.try_collect::<Vec<_>>().await.map(drop)
    }
}

/// Removes files, and says of each what came of it.
fn remove(files: &LocalFileSystem, locations: Vec<Result<Path>>) -> Result<Vec<Result<Path>>> {
    let mut paths = Vec::with_capacity(locations.len());
    for location in locations.iter().flatten() {
        paths.push(files.path_to_filesystem(location)?);
    }
    let mut removed = paths.iter().zip(sums::remove(&paths));
    let mut of = |location: Path| match removed.next() {
        Some((path, Err(error))) => Err(failed(path, error)),
        _ => Ok(location),
    };
    Ok(locations.into_iter().map(|location| location.and_then(&mut of)).collect())
}

/// A file that is written in parts.
#[derive(Debug)]
struct Upload {
    file: Arc<durable::File>,
    /// Where it goes when it is complete.
    path: PathBuf,
    written: u64,
    /// Of the parts, which are handed over in their order.
    sums: Summing,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (file, mut at) = (self.file.clone(), self.written);
        self.written += data.content_length() as u64;
        data.iter().for_each(|bytes| self.sums.update(bytes));
        Box::pin(blocking(move || {
            for bytes in data.iter() {
                file.write_all_at(bytes, at).map_err(|error| failed(file.path(), error))?;
                at += bytes.len() as u64;
            }
            Ok(())
        }))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (file, path, sums) = (self.file.clone(), self.path.clone(), std::mem::take(&mut self.sums));
        blocking(move || {
            let placed = file
                .sync()
                .and_then(|()| sums::place(&path, &sums.end(), true, || durable::rename(file.path(), &path)));
            placed.map_err(|error| failed(&path, error))?;
            Ok(PutResult { e_tag: None, version: None })
        })
        .await
    }

    async fn abort(&mut self) -> Result<()> {
        let file = self.file.clone();
        blocking(move || durable::remove_file(file.path()).map_err(|error| failed(file.path(), error))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;

    #[tokio::test]
    async fn files_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = DurableStore::default();
        let at = |name: &str| Path::from_absolute_path(dir.path().join(name)).unwrap();
        let prefix = Path::from_absolute_path(dir.path()).unwrap();
        let names = async |store: &DurableStore| -> Vec<String> {
            let list = store.list(Some(&prefix)).try_collect::<Vec<_>>().await.unwrap();
            let mut names: Vec<_> = list.iter().map(|m| m.location.filename().unwrap().to_string()).collect();
            names.sort();
            names
        };
        let create = PutOptions::from(PutMode::Create);
        store.put_opts(&at("a/1"), "one".into(), create.clone()).await.unwrap();
        let taken = store.put_opts(&at("a/1"), "two".into(), create).await.unwrap_err();
        assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
        store.put(&at("a/2"), "two".into()).await.unwrap();
        store.put(&at("a/2"), "2".into()).await.unwrap();
        let mut upload = store.put_multipart(&at("b/3")).await.unwrap();
        let parts = [upload.put_part("th".into()), upload.put_part("ree".into())];
        futures::future::try_join_all(parts).await.unwrap();
        assert_eq!(names(&store).await, ["1", "2"]);
        upload.complete().await.unwrap();
        assert_eq!(names(&store).await, ["1", "2", "3"]);
        assert!(store.copy_if_not_exists(&at("a/1"), &at("a/2")).await.is_err());
        store.rename(&at("b/3"), &at("a/1")).await.unwrap();
        assert_eq!(names(&store).await, ["1", "2"]);
        assert_eq!(store.get(&at("a/1")).await.unwrap().bytes().await.unwrap(), "three");
        assert_eq!(store.get(&at("a/2")).await.unwrap().bytes().await.unwrap(), "2");
    }
}

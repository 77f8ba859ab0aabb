//! An object store over local folders that is on disk when a call returns. `object_store`'s own one fsyncs nothing:
//! after a power cut a table's log could name a file that is empty, or the log's last entry could be gone.
//!
//! A file gets its name when all of it is on disk: it is written aside, fsynced, then linked (put if absent) or
//! renamed, and the folder is fsynced.

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, RenameTargetMode, Result, UploadPart,
};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tally_log::durable;

const STORE: &str = "DurableStore";

/// Ends the name of a file that is not in place yet. `durable::remove_leftovers` knows it, and lists leave it out.
const ASIDE: &str = ".aside";

/// Local files, durable when a call returns. Paths are those of the whole file system.
#[derive(Debug, Default)]
pub(crate) struct DurableStore {
    reads: LocalFileSystem,
}

impl DurableStore {
    fn file(&self, location: &Path) -> Result<PathBuf> {
        self.reads.path_to_filesystem(location)
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

/// Runs file operations where they may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|source| Error::JoinError { source })?
}

fn make_folder(path: &std::path::Path) -> Result<()> {
    match path.parent() {
        Some(folder) => durable::create_dir_all(folder).map_err(|error| failed(folder, error)),
        None => Ok(()),
    }
}

fn is_aside(location: &Path) -> bool {
    location.filename().is_some_and(|name| name.ends_with(ASIDE))
}

#[async_trait]
impl ObjectStore for DurableStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let path = self.file(location)?;
        blocking(move || {
            make_folder(&path)?;
            let bytes = bytes::Bytes::from(payload);
            let written = match options.mode {
                PutMode::Overwrite => durable::write_aside(&path, &bytes),
                PutMode::Create => durable::create_new(&path, &bytes),
                PutMode::Update(_) => {
                    let operation = "put_opts with PutMode::Update".to_string();
                    return Err(Error::NotImplemented { operation, implementer: STORE.to_string() });
                }
            };
            written.map_err(|error| failed(&path, error))?;
            Ok(PutResult { e_tag: None, version: None })
        })
        .await
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let path = self.file(location)?;
        blocking(move || {
            make_folder(&path)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = path.with_file_name(format!(".{name}.{}{ASIDE}", uuid::Uuid::new_v4().simple()));
            let file = durable::File::create_new(&aside).map_err(|error| failed(&aside, error))?;
            Ok(Box::new(Upload { file: Arc::new(file), path, written: 0 }) as Box<dyn MultipartUpload>)
        })
        .await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.reads.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        self.reads.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.reads.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.reads.list(prefix).try_filter(|meta| std::future::ready(!is_aside(&meta.location))).boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let list = self.reads.list_with_offset(prefix, offset);
        list.try_filter(|meta| std::future::ready(!is_aside(&meta.location))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut list = self.reads.list_with_delimiter(prefix).await?;
        list.objects.retain(|meta| !is_aside(&meta.location));
        Ok(list)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (from, to) = (self.file(from)?, self.file(to)?);
        blocking(move || {
            make_folder(&to)?;
            let bytes = durable::read(&from).map_err(|error| failed(&from, error))?;
            let copied = match options.mode {
                CopyMode::Overwrite => durable::write_aside(&to, &bytes),
                CopyMode::Create => durable::create_new(&to, &bytes),
            };
            copied.map_err(|error| failed(&to, error))
        })
        .await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let copy = match options.target_mode {
            RenameTargetMode::Overwrite => CopyOptions { mode: CopyMode::Overwrite, ..CopyOptions::default() },
            RenameTargetMode::Create => CopyOptions { mode: CopyMode::Create, ..CopyOptions::default() },
        };
        self.copy_opts(from, to, copy).await?;
        let from = self.file(from)?;
        blocking(move || {
            let folder = from.parent().map(std::path::Path::to_path_buf).unwrap_or_default();
            let removed = durable::remove_file(&from).and_then(|()| durable::sync_dir(&folder));
            removed.map_err(|error| failed(&from, error))
        })
        .await
    }
}

/// A file that is written in parts.
#[derive(Debug)]
struct Upload {
    file: Arc<durable::File>,
    /// Where it goes when it is complete.
    path: PathBuf,
    written: u64,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (file, mut at) = (self.file.clone(), self.written);
        self.written += data.content_length() as u64;
        Box::pin(blocking(move || {
            for bytes in data.iter() {
                file.write_all_at(bytes, at).map_err(|error| failed(file.path(), error))?;
                at += bytes.len() as u64;
            }
            Ok(())
        }))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (file, path) = (self.file.clone(), self.path.clone());
        blocking(move || {
            let placed = file.sync().and_then(|()| durable::rename(file.path(), &path));
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

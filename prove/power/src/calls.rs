//! The calls, each before the C library's own.

use crate::state::{Fate, Now, State, fail, state};
use libc::{c_char, c_int, c_uint, c_void, iovec, mode_t, off_t, size_t, ssize_t, stat};
use std::cell::Cell;
use std::ffi::{CStr, CString};

/// The C library's own functions.
pub mod real {
    use super::*;

    macro_rules! real {
        ($($name:ident($($arg:ty),*) -> $result:ty;)*) => {
            $(pub fn $name() -> unsafe extern "C" fn($($arg),*) -> $result {
                static FOUND: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
                let found = *FOUND.get_or_init(|| {
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: the name ends with a zero byte.
                    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) };
                    if found.is_null() { super::fail(concat!("the C library has no ", stringify!($name))) }
                    found as usize
                });
                // SAFETY: the C library's function of this name has this type.
                unsafe { std::mem::transmute::<usize, unsafe extern "C" fn($($arg),*) -> $result>(found) }
            })*
        };
    }

    real! {
        open(*const c_char, c_int, mode_t) -> c_int;
        openat(c_int, *const c_char, c_int, mode_t) -> c_int;
        write(c_int, *const c_void, size_t) -> ssize_t;
        writev(c_int, *const iovec, c_int) -> ssize_t;
        pwrite(c_int, *const c_void, size_t, off_t) -> ssize_t;
        ftruncate(c_int, off_t) -> c_int;
        fallocate(c_int, c_int, off_t, off_t) -> c_int;
        fsync(c_int) -> c_int;
        rename(*const c_char, *const c_char) -> c_int;
        renameat2(c_int, *const c_char, c_int, *const c_char, c_uint) -> c_int;
        link(*const c_char, *const c_char) -> c_int;
        linkat(c_int, *const c_char, c_int, *const c_char, c_int) -> c_int;
        unlink(*const c_char) -> c_int;
        unlinkat(c_int, *const c_char, c_int) -> c_int;
        mkdir(*const c_char, mode_t) -> c_int;
        rmdir(*const c_char) -> c_int;
        copy_file_range(c_int, *mut off_t, c_int, *mut off_t, size_t, u32) -> ssize_t;
        sendfile(c_int, c_int, *mut off_t, size_t) -> ssize_t;
    }
}

fn set_errno(value: c_int) {
    // SAFETY: the C library's own place, of this thread.
    unsafe { *libc::__errno_location() = value };
}

fn end() -> ! {
    // SAFETY: no memory is touched.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    loop {
        std::thread::park();
    }
}

/// Absolute, without a look at the disk: the product's paths have no links and no dots below the folder.
fn absolute(dir: c_int, path: *const c_char) -> Option<String> {
    // SAFETY: callers hand over paths as the C library wants them.
    let path = unsafe { CStr::from_ptr(path) }.to_str().ok()?;
    if path.starts_with('/') {
        return Some(path.trim_end_matches('/').into());
    }
    let base = if dir == libc::AT_FDCWD { std::env::current_dir().ok()?.to_str()?.to_string() } else { path_of(dir)? };
    Some(format!("{base}/{}", path.trim_start_matches("./").trim_end_matches('/')))
}

fn path_of(fd: c_int) -> Option<String> {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?.into_os_string().into_string().ok()
}

fn status(path: &str) -> Option<stat> {
    let path = CString::new(path).ok()?;
    // SAFETY: a stat is plain numbers.
    let mut status: stat = unsafe { std::mem::zeroed() };
    // SAFETY: path and status live through the call.
    (unsafe { libc::lstat(path.as_ptr(), &mut status) } == 0).then_some(status)
}

/// The open file or folder below ours: its path there and its status.
fn ours(state: &State, fd: c_int) -> Option<(String, stat)> {
    // SAFETY: a stat is plain numbers.
    let mut status: stat = unsafe { std::mem::zeroed() };
    // SAFETY: status lives through the call.
    if unsafe { libc::fstat(fd, &mut status) } != 0 {
        return None;
    }
    if !matches!(status.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
        return None;
    }
    let path = path_of(fd)?;
    Some((state.below(&path)?.to_string(), status))
}

fn is_dir(status: &stat) -> bool {
    status.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// Folder and name of a path below ours.
fn named(state: &State, path: &str) -> Option<(u64, String)> {
    state.below(path)?;
    let (folder, name) = path.rsplit_once('/')?;
    Some((status(folder)?.st_ino, name.to_string()))
}

/// What stands in a file, as far as it reaches.
fn before(path: &str, offset: u64, length: u64, size: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let there = size.saturating_sub(offset).min(length) as usize;
    let mut bytes = vec![0; there];
    if there > 0 {
        let read = std::fs::File::open(path).and_then(|file| file.read_exact_at(&mut bytes, offset));
        if let Err(error) = read {
            fail(&format!("{path} cannot be read: {error}"));
        }
    }
    bytes
}

/// A change that takes room in an open file. `half` does a part of it, for who dies meanwhile.
fn grow(
    fd: c_int,
    what: &str,
    range: impl Fn(&stat) -> (u64, u64),
    go: impl Fn() -> ssize_t,
    half: impl Fn(),
) -> ssize_t {
    let Some(state) = state() else { return go() };
    let Some((path, status)) = ours(state, fd) else { return go() };
    let mut now = state.lock();
    // The size may have changed while another thread was in here.
    let status = ours(state, fd).map_or(status, |(_, status)| status);
    let (offset, length) = range(&status);
    let size = status.st_size as u64;
    let old = before(&path_of_fd(fd), offset, length, size);
    let note = |now: &mut Now| {
        now.changed(status.st_ino, "write");
        now.journal.note_bytes(&format!("write {} {offset} {length} {size}", status.st_ino), &old);
    };
    match state.fate(&mut now, true, &format!("{what} {path}")) {
        Fate::Goes => {
            // Noted before it is done: what was not done is undone to the same.
            note(&mut now);
            go()
        }
        Fate::Full => {
            set_errno(libc::ENOSPC);
            -1
        }
        Fate::Dies => {
            note(&mut now);
            half();
            end()
        }
    }
}

/// A name that leads to the open file also after it was removed.
fn path_of_fd(fd: c_int) -> String {
    format!("/proc/self/fd/{fd}")
}

/// Where the next write goes.
fn cursor(fd: c_int, status: &stat) -> u64 {
    // SAFETY: no memory is touched.
    let (flags, at) = unsafe { (libc::fcntl(fd, libc::F_GETFL), libc::lseek(fd, 0, libc::SEEK_CUR)) };
    if flags & libc::O_APPEND != 0 { status.st_size as u64 } else { at.max(0) as u64 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, length: size_t) -> ssize_t {
    let go = |length| unsafe { (real::write())(fd, bytes, length) };
    grow(fd, "write", |status| (cursor(fd, status), length as u64), || go(length), || _ = go(length / 2))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t {
    let go = |count| unsafe { (real::writev())(fd, vectors, count) };
    let parts = unsafe { std::slice::from_raw_parts(vectors, usize::try_from(count).unwrap_or(0)) };
    let length: usize = parts.iter().map(|part| part.iov_len).sum();
    grow(fd, "write", |status| (cursor(fd, status), length as u64), || go(count), || _ = go(count / 2))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, length: size_t, offset: off_t) -> ssize_t {
    let go = |length| unsafe { (real::pwrite())(fd, bytes, length, offset) };
    grow(fd, "write", |_| (offset as u64, length as u64), || go(length), || _ = go(length / 2))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, length: size_t, offset: off_t) -> ssize_t {
    unsafe { pwrite(fd, bytes, length, offset) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int {
    let go = || unsafe { (real::fallocate())(fd, mode, offset, length) } as ssize_t;
    grow(fd, "allocate", |_| (offset as u64, length as u64), go, || ()) as c_int
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int {
    unsafe { fallocate(fd, mode, offset, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate(fd: c_int, length: off_t) -> c_int {
    let go = || unsafe { (real::ftruncate())(fd, length) };
    let Some(state) = state() else { return go() };
    let Some((path, status)) = ours(state, fd) else { return go() };
    let mut now = state.lock();
    let (old, new) = (status.st_size as u64, length as u64);
    let cut = before(&path_of_fd(fd), new, old.saturating_sub(new), old);
    let fate = state.fate(&mut now, new > old, &format!("set the size of {path}"));
    if fate == Fate::Full {
        set_errno(libc::ENOSPC);
        return -1;
    }
    if fate == Fate::Dies {
        end();
    }
    now.changed(status.st_ino, "size");
    now.journal.note_bytes(&format!("size {} {old} {new}", status.st_ino), &cut);
    go()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(fd: c_int, length: off_t) -> c_int {
    unsafe { ftruncate(fd, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    let Some(state) = state() else { return unsafe { (real::fsync())(fd) } };
    let Some((path, status)) = ours(state, fd) else { return unsafe { (real::fsync())(fd) } };
    let mut now = state.lock();
    let kind = state.kind_of_sync(&mut now, status.st_ino, &path, is_dir(&status));
    state.passes_sync(&mut now, &kind);
    if state.fate(&mut now, false, &format!("sync {path}")) == Fate::Dies {
        end();
    }
    if state.sync_fails(&mut now, &kind) {
        // A file system that cannot write its names stops as a whole; pages of a file are only forgotten.
        if !is_dir(&status) {
            now.journal.note(&format!("failed {}", status.st_ino));
        }
        set_errno(libc::EIO);
        return -1;
    }
    if state.is_deaf(&kind) {
        now.journal.note(&format!("skipped {} {kind}", status.st_ino));
    } else {
        now.journal.note(&format!("sync {} {kind}", status.st_ino));
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    unsafe { fsync(fd) }
}

/// A change of names.
fn rename_things(
    what: &str,
    path: Option<String>,
    takes_room: bool,
    go: impl Fn() -> c_int,
    note: impl Fn(&State, &mut Now, &str),
) -> c_int {
    let Some(state) = state() else { return go() };
    let Some(path) = path.filter(|path| state.below(path).is_some()) else { return go() };
    let mut now = state.lock();
    match state.fate(&mut now, takes_room, &format!("{what} {path}")) {
        Fate::Goes => {}
        Fate::Full => {
            set_errno(libc::ENOSPC);
            return -1;
        }
        Fate::Dies => end(),
    }
    // The result is not known yet; what is noted is looked up afterwards, or saved before.
    note(state, &mut now, &path);
    go()
}

fn opened(dir: c_int, path: *const c_char, flags: c_int, go: impl Fn() -> c_int) -> c_int {
    let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let Some(state) = state().filter(|_| changes) else { return go() };
    let Some(path) = absolute(dir, path).filter(|path| state.below(path).is_some()) else { return go() };
    let mut now = state.lock();
    let there = status(&path);
    match there {
        Some(status) if flags & libc::O_TRUNC != 0 && status.st_size > 0 => {
            let old = status.st_size as u64;
            let cut = before(&path, 0, old, old);
            if state.fate(&mut now, false, &format!("empty {path}")) == Fate::Dies {
                end();
            }
            now.changed(status.st_ino, "size");
            now.journal.note_bytes(&format!("size {} {old} 0", status.st_ino), &cut);
            go()
        }
        Some(_) => go(),
        None if flags & libc::O_CREAT == 0 => go(),
        None => {
            match state.fate(&mut now, true, &format!("create {path}")) {
                Fate::Goes => {}
                Fate::Full => {
                    set_errno(libc::ENOSPC);
                    return -1;
                }
                Fate::Dies => end(),
            }
            let fd = go();
            if let (true, Some(status), Some((folder, name))) = (fd >= 0, status(&path), named(state, &path)) {
                state.named(&mut now, "create", folder, &name);
                now.journal.note(&format!("create {folder} {} {name}", status.st_ino));
            }
            fd
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    opened(libc::AT_FDCWD, path, flags, || unsafe { (real::open())(path, flags, mode) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    unsafe { open(path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    opened(dir, path, flags, || unsafe { (real::openat())(dir, path, flags, mode) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    unsafe { openat(dir, path, flags, mode) }
}

/// Keeps a file that is about to lose a name.
fn save(state: &State, path: &str, ino: u64) {
    let saved = format!("{}/{ino}", state.saved);
    let (Ok(from), Ok(to)) = (CString::new(path), CString::new(saved.clone())) else { fail("a path with a zero byte") };
    // SAFETY: both paths end with a zero byte and live through the call.
    let done = unsafe { (real::link())(from.as_ptr(), to.as_ptr()) };
    if done != 0 && std::io::Error::last_os_error().kind() != std::io::ErrorKind::AlreadyExists {
        fail(&format!("{path} cannot be kept as {saved}"));
    }
}

fn removed(dir: c_int, path: *const c_char, of_folder: bool, go: impl Fn() -> c_int) -> c_int {
    let moved: Cell<Option<[CString; 2]>> = Cell::new(None);
    let go = || match moved.take() {
        // SAFETY: both paths end with a zero byte and live through the call.
        Some([from, to]) => unsafe { (real::rename())(from.as_ptr(), to.as_ptr()) },
        None => go(),
    };
    rename_things("remove", absolute(dir, path), false, go, |state, now, path| {
        let (Some(status), Some((folder, name))) = (status(path), named(state, path)) else { return };
        if is_dir(&status) != of_folder {
            return;
        }
        if of_folder {
            // A folder that is not empty stays.
            if std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_some()) {
                return;
            }
            // It is kept as well, so that nothing new gets its inode.
            let saved = CString::new(format!("{}/{}", state.saved, status.st_ino));
            let (Ok(from), Ok(to)) = (CString::new(path), saved) else { fail("a path with a zero byte") };
            moved.set(Some([from, to]));
        } else {
            save(state, path, status.st_ino);
        }
        state.named(now, "remove", folder, &name);
        now.journal.note(&format!("remove {folder} {} {name}", status.st_ino));
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    removed(libc::AT_FDCWD, path, false, || unsafe { (real::unlink())(path) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    removed(dir, path, flags & libc::AT_REMOVEDIR != 0, || unsafe { (real::unlinkat())(dir, path, flags) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    removed(libc::AT_FDCWD, path, true, || unsafe { (real::rmdir())(path) })
}

fn renamed(from: Option<String>, to: Option<String>, go: impl Fn() -> c_int) -> c_int {
    rename_things("rename", from, false, go, |state, now, from| {
        let Some(to) = &to else { return };
        let (Some(status_from), Some((folder, name))) = (status(from), named(state, from)) else { return };
        let Some((new_folder, new_name)) = named(state, to) else { fail("renamed out of the folder") };
        let replaced = status(to);
        match &replaced {
            // A folder that is replaced is empty, and is moved away, so that nothing new gets its inode.
            Some(replaced) if is_dir(replaced) => {
                let is_empty = std::fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_none());
                let saved = CString::new(format!("{}/{}", state.saved, replaced.st_ino));
                let (Ok(to), Ok(saved)) = (CString::new(to.as_str()), saved) else { fail("a path with a zero byte") };
                if !is_empty {
                    return;
                }
                // SAFETY: both paths end with a zero byte and live through the call.
                unsafe { (real::rename())(to.as_ptr(), saved.as_ptr()) };
            }
            Some(replaced) => save(state, to, replaced.st_ino),
            None => {}
        }
        let replaced = replaced.map_or(0, |status| status.st_ino);
        state.named(now, "rename from", folder, &name);
        state.named(now, "rename to", new_folder, &new_name);
        now.journal.note(&format!("rename {folder} {} {replaced} {new_folder} {name}/{new_name}", status_from.st_ino));
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let at = libc::AT_FDCWD;
    renamed(absolute(at, from), absolute(at, to), || unsafe { (real::rename())(from, to) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char) -> c_int {
    unsafe { renameat2(from_dir, from, to_dir, to, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat2(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    let go = || unsafe { (real::renameat2())(from_dir, from, to_dir, to, flags) };
    let (from, to) = (absolute(from_dir, from), absolute(to_dir, to));
    // Told not to replace, it leaves what is there alone and fails.
    if flags != 0 && to.as_deref().and_then(status).is_some() {
        return go();
    }
    renamed(from, to, go)
}

fn linked(from: Option<String>, to: Option<String>, go: impl Fn() -> c_int) -> c_int {
    rename_things("link", to, true, go, |state, now, to| {
        // Taken already: the call will say so.
        if status(to).is_some() {
            return;
        }
        let Some(status) = from.as_deref().and_then(status) else { return };
        if let Some((folder, name)) = named(state, to) {
            state.named(now, "link", folder, &name);
            now.journal.note(&format!("create {folder} {} {name}", status.st_ino));
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    let at = libc::AT_FDCWD;
    linked(absolute(at, from), absolute(at, to), || unsafe { (real::link())(from, to) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn linkat(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    let go = || unsafe { (real::linkat())(from_dir, from, to_dir, to, flags) };
    linked(absolute(from_dir, from), absolute(to_dir, to), go)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    let Some(state) = state() else { return unsafe { (real::mkdir())(path, mode) } };
    let there = absolute(libc::AT_FDCWD, path).filter(|path| state.below(path).is_some());
    if there.as_deref().and_then(status).is_some() {
        return unsafe { (real::mkdir())(path, mode) };
    }
    let made =
        rename_things("make folder", there.clone(), true, || unsafe { (real::mkdir())(path, mode) }, |_, _, _| ());
    if let (0, Some(path)) = (made, there)
        && let (Some(status), Some((folder, name))) = (status(&path), named(state, &path))
    {
        let mut now = state.lock();
        now.changed(folder, "make folder");
        now.journal.note(&format!("create {folder} {} {name}", status.st_ino));
    }
    made
}

/// Copies within the kernel would go past the journal: callers fall back to reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    length: size_t,
    flags: u32,
) -> ssize_t {
    if state().is_some_and(|state| ours(state, to).is_some()) {
        set_errno(libc::ENOSYS);
        return -1;
    }
    unsafe { (real::copy_file_range())(from, from_offset, to, to_offset, length, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile(to: c_int, from: c_int, offset: *mut off_t, length: size_t) -> ssize_t {
    if state().is_some_and(|state| ours(state, to).is_some()) {
        set_errno(libc::EINVAL);
        return -1;
    }
    unsafe { (real::sendfile())(to, from, offset, length) }
}

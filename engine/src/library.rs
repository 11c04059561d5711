//! libchdb by `dlopen`: the only file with `unsafe`. Signatures are those of its `chdb.h`, version 26.7; the version that is fetched stands in `libchdb.json`.
//!
//! Rules of the library that shape this file: one data folder per process; several connections to it, each with settings and a current database of its own, each running one
//! statement at a time; the last connection closed shuts the engine down, so `Library` keeps one open until `close`.
#![expect(unsafe_code, reason = "calls into a C library that is loaded at run time")]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// Why the library cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// `dlopen` or `dlsym` failed.
    #[error("libchdb cannot be loaded from {path}: {text}; `cargo xtask engine` fetches the version this program was made for")]
    Load {
        /// The file tried.
        path: PathBuf,
        /// The loader's words.
        text: String,
    },
    /// The data folder cannot be opened.
    #[error("libchdb cannot open the data folder {path}; is it a ClickHouse data folder, and writable?")]
    Open {
        /// The folder.
        path: PathBuf,
    },
    /// A path with a NUL byte.
    #[error("the path {path:?} has a NUL byte")]
    Path {
        /// The path.
        path: PathBuf,
    },
}

/// `chdb_connection`: a pointer to a structure of the library's own.
type RawConnection = *mut c_void;
/// `chdb_result *`.
type RawResult = *mut c_void;

type Connect = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut RawConnection;
type CloseConnection = unsafe extern "C" fn(*mut RawConnection);
type Query = unsafe extern "C" fn(RawConnection, *const c_char, usize, *const c_char, usize) -> RawResult;
type DestroyResult = unsafe extern "C" fn(RawResult);
type ResultBuffer = unsafe extern "C" fn(RawResult) -> *mut c_char;
type ResultLength = unsafe extern "C" fn(RawResult) -> usize;
type ResultNumber = unsafe extern "C" fn(RawResult) -> u64;
type ResultError = unsafe extern "C" fn(RawResult) -> *const c_char;
type SetSignalHandlers = unsafe extern "C" fn(c_int);

struct Symbols {
    connect: Connect,
    close: CloseConnection,
    query: Query,
    destroy: DestroyResult,
    buffer: ResultBuffer,
    length: ResultLength,
    rows_read: ResultNumber,
    bytes_read: ResultNumber,
    storage_rows_read: ResultNumber,
    storage_bytes_read: ResultNumber,
    rows_written: ResultNumber,
    bytes_written: ResultNumber,
    error: ResultError,
}

/// The loaded library with its data folder open. There is one per process, and it is never unloaded.
pub struct Library {
    symbols: Symbols,
    arguments: Vec<CString>,
    /// Keeps the library's engine up between requests.
    base: Mutex<Option<Handle>>,
}

/// An open connection's handle.
struct Handle(NonNull<RawConnection>);

// SAFETY: the library runs the statements of a connection on threads of its own and lets any thread hand them over, one at a time; `Connection` takes `&mut self`.
unsafe impl Send for Handle {}

/// A connection: settings, current database, one statement at a time.
pub struct Connection {
    library: &'static Library,
    handle: Handle,
}

/// The result of a statement. Its bytes are the library's own, freed with it.
pub struct Answer {
    library: &'static Library,
    result: NonNull<c_void>,
    bytes: NonNull<u8>,
    length: usize,
    /// What the statement read and wrote.
    pub summary: Summary,
}

// SAFETY: a result is plain memory that belongs to its holder once the query has returned; the library frees it from any thread.
unsafe impl Send for Answer {}

/// Numbers for `X-ClickHouse-Summary`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Rows read from tables.
    pub read_rows: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Rows written, those of views included.
    pub written_rows: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Rows of the result.
    pub result_rows: u64,
    /// Bytes of them, in memory.
    pub result_bytes: u64,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: buffer and length were read from this result, which lives as long as `self` and is never written to.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.length) }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: the result came from a query and is destroyed once.
        unsafe { (self.library.symbols.destroy)(self.result.as_ptr()) }
    }
}

/// Copies the address of a function out of the library.
fn symbol<T: Copy>(library: &libloading::Library, path: &Path, name: &str) -> Result<T, LibraryError> {
    // SAFETY: `T` is the type that chdb.h declares for `name`; the library is never unloaded, so the copy stays valid.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|error| LibraryError::Load { path: path.to_owned(), text: error.to_string() })
}

fn c_string(text: &OsStr) -> Result<CString, LibraryError> {
    CString::new(text.as_encoded_bytes()).map_err(|_| LibraryError::Path { path: text.into() })
}

impl Library {
    /// Loads the library from `path` and opens the data folder `data`, which is made where it is missing; without one everything is gone at the end.
    /// Call it before the process starts threads, once.
    ///
    /// # Errors
    /// When there is no such library, it lacks a function, or the folder cannot be opened.
    pub fn open(path: &Path, data: Option<&Path>) -> Result<&'static Self, LibraryError> {
        // The engine's zone is that of the process, and every server that the pool is used with runs in UTC.
        // SAFETY: no other thread exists yet, as this function asks for.
        unsafe { std::env::set_var("TZ", "UTC") };
        // SAFETY: libchdb's initialisers only set up its own state; the file is the one that the operator named or fetched.
        let loaded = unsafe { libloading::Library::new(path) };
        let loaded = loaded.map_err(|error| LibraryError::Load { path: path.to_owned(), text: error.to_string() })?;
        let symbols = Symbols {
            connect: symbol(&loaded, path, "chdb_connect")?,
            close: symbol(&loaded, path, "chdb_close_conn")?,
            query: symbol(&loaded, path, "chdb_query_n")?,
            destroy: symbol(&loaded, path, "chdb_destroy_query_result")?,
            buffer: symbol(&loaded, path, "chdb_result_buffer")?,
            length: symbol(&loaded, path, "chdb_result_length")?,
            rows_read: symbol(&loaded, path, "chdb_result_rows_read")?,
            bytes_read: symbol(&loaded, path, "chdb_result_bytes_read")?,
            storage_rows_read: symbol(&loaded, path, "chdb_result_storage_rows_read")?,
            storage_bytes_read: symbol(&loaded, path, "chdb_result_storage_bytes_read")?,
            rows_written: symbol(&loaded, path, "chdb_result_rows_written")?,
            bytes_written: symbol(&loaded, path, "chdb_result_bytes_written")?,
            error: symbol(&loaded, path, "chdb_result_error")?,
        };
        let set_signal_handlers: SetSignalHandlers = symbol(&loaded, path, "chdb_set_signal_handlers_enabled")?;
        // Its handlers for SIGSEGV and the like print for minutes; a crash is to be a crash.
        // SAFETY: takes a number, before the first connection.
        unsafe { set_signal_handlers(0) };
        // Its threads run until the process ends, so its code has to stay.
        std::mem::forget(loaded);
        let mut arguments = vec![c_string(OsStr::new("otedama-engine"))?];
        if let Some(data) = data {
            let mut argument = std::ffi::OsString::from("--path=");
            argument.push(data);
            arguments.push(c_string(&argument)?);
        }
        let library: &'static Self = Box::leak(Box::new(Self { symbols, arguments, base: Mutex::new(None) }));
        let handle = library.raw_connect().ok_or_else(|| LibraryError::Open { path: data.unwrap_or(Path::new("(memory)")).to_owned() })?;
        *library.base.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok(library)
    }

    fn raw_connect(&self) -> Option<Handle> {
        let mut arguments: Vec<*mut c_char> = self.arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
        let count = c_int::try_from(arguments.len()).unwrap_or(0);
        // SAFETY: `count` pointers to NUL-terminated strings that outlive the call; the library copies and does not write them.
        NonNull::new(unsafe { (self.symbols.connect)(count, arguments.as_mut_ptr()) }).map(Handle)
    }

    /// A new connection with the engine's default settings; None when the library refuses.
    pub fn connect(&'static self) -> Option<Connection> {
        self.raw_connect().map(|handle| Connection { library: self, handle })
    }

    /// Closes the data folder: what was in memory is on the disk. Every `Connection` must have been dropped; none can be made afterwards.
    ///
    /// `chdb_shutdown` is not called: it would also join the library's threads, and once a table has been written to it refuses (26.7.3); the process is about to end anyway.
    pub fn close(&self) {
        if let Some(base) = self.base.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // SAFETY: the handle came from `connect` and is closed once.
            unsafe { (self.symbols.close)(base.0.as_ptr()) };
        }
    }
}

impl Connection {
    /// Runs one statement. `format` is that of the result where the statement names none.
    ///
    /// # Errors
    /// The engine's words.
    pub fn query(&mut self, statement: &[u8], format: &str) -> Result<Answer, String> {
        let symbols = &self.library.symbols;
        // SAFETY: the handle is open and points to the library's connection for as long as `self` lives.
        let connection = unsafe { *self.handle.0.as_ptr() };
        // SAFETY: both texts are given with their lengths and outlive the call.
        let raw = unsafe { (symbols.query)(connection, statement.as_ptr().cast(), statement.len(), format.as_ptr().cast(), format.len()) };
        let Some(result) = NonNull::new(raw) else { return Err("libchdb gave no result".to_owned()) };
        let mut answer = Answer { library: self.library, result, bytes: NonNull::dangling(), length: 0, summary: Summary::default() };
        // SAFETY: `result` is a live result of this library.
        let error = unsafe { (symbols.error)(result.as_ptr()) };
        if !error.is_null() {
            // SAFETY: a NUL-terminated text that belongs to `result`.
            let text = unsafe { CStr::from_ptr(error) };
            return Err(text.to_string_lossy().into_owned());
        }
        // SAFETY: as above.
        let length = unsafe { (symbols.length)(result.as_ptr()) };
        // SAFETY: as above.
        let buffer = unsafe { (symbols.buffer)(result.as_ptr()) };
        if let Some(bytes) = NonNull::new(buffer.cast::<u8>()) {
            (answer.bytes, answer.length) = (bytes, length);
        }
        // SAFETY: as above, for each of the numbers.
        let number = |read: ResultNumber| unsafe { read(result.as_ptr()) };
        answer.summary = Summary {
            read_rows: number(symbols.storage_rows_read),
            read_bytes: number(symbols.storage_bytes_read),
            written_rows: number(symbols.rows_written),
            written_bytes: number(symbols.bytes_written),
            result_rows: number(symbols.rows_read),
            result_bytes: number(symbols.bytes_read),
        };
        Ok(answer)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the handle came from `connect` and is closed once.
        unsafe { (self.library.symbols.close)(self.handle.0.as_ptr()) }
    }
}

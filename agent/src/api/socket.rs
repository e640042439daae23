use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Group};
use tokio::net::UnixListener;

use super::ApiError;

const MODE: u32 = 0o660;

/// The listening socket, mode 0660.
#[derive(Debug)]
pub struct ApiSocket {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
    /// Tells this socket's file from one that another process put in its place.
    pub(super) inode: (u64, u64),
}

impl ApiSocket {
    /// Listens on `path`, for root and `group` (a name or a number). Makes the directory, and replaces a socket on which
    /// nobody answers. Must run inside a tokio runtime.
    pub fn bind(path: &Path, group: &str) -> Result<Self, ApiError> {
        let failed = |operation| {
            move |error: io::Error| ApiError::Socket {
                operation,
                path: path.to_owned(),
                error,
            }
        };
        let group = group_id(group)?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
        }
        clear(path)?;
        let listener = listen_on(path).map_err(failed("listen on"))?;
        let metadata = fs::symlink_metadata(path).map_err(failed("look at"))?;
        if metadata.gid() != group.as_raw() {
            std::os::unix::fs::chown(path, None, Some(group.as_raw()))
                .map_err(failed("give to the group of --socket-group"))?;
        }
        fs::set_permissions(path, Permissions::from_mode(MODE))
            .map_err(failed("set the mode of"))?;
        listener
            .set_nonblocking(true)
            .map_err(failed("listen on"))?;
        Ok(Self {
            listener: UnixListener::from_std(listener).map_err(failed("listen on"))?,
            path: path.to_owned(),
            inode: (metadata.dev(), metadata.ino()),
        })
    }
}

/// Device and inode of what is at `path`.
pub(super) fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn group_id(group: &str) -> Result<Gid, ApiError> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid),
        _ => Err(ApiError::UnknownGroup(group.to_owned())),
    }
}

/// Removes what a killed agent left at `path`, and nothing else.
fn clear(path: &Path) -> Result<(), ApiError> {
    let failed = |operation| {
        move |error| ApiError::Socket {
            operation,
            path: path.to_owned(),
            error,
        }
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ApiError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ApiError::SocketInUse(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Err(error) => Err(failed("see who answers on")(error)),
    }
}

/// `std` gives no way to say the mode before the name is there: on Linux the file takes the mode that the socket has
/// when it is bound, so nobody outside can connect before owner and group are right.
fn listen_on(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    fchmod(fd.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(fd.into())
}

//! [`read_boot`]: which start of the machine this is.

use std::io;
use std::time::Duration;

/// The start of the machine that this process runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineBoot {
    /// Another one after each start.
    pub id: String,
    /// Time since then, sleep included.
    pub uptime: Duration,
}

/// # Errors
/// When the system does not tell.
#[cfg(target_os = "linux")]
pub fn read_boot() -> io::Result<MachineBoot> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    if id.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the boot id is empty"));
    }
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = Duration::from_secs(u64::try_from(since.tv_sec).unwrap_or(0));
    let nanos = Duration::from_nanos(u64::try_from(since.tv_nsec).unwrap_or(0));
    Ok(MachineBoot { id, uptime: seconds + nanos })
}

/// # Errors
/// When the system does not tell.
#[cfg(target_os = "macos")]
pub fn read_boot() -> io::Result<MachineBoot> {
    let told = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "kern.bootsessionuuid"]).output()?;
    let id = String::from_utf8_lossy(&told.stdout).trim().to_owned();
    if !told.status.success() || id.is_empty() {
        return Err(io::Error::other("sysctl does not tell kern.bootsessionuuid"));
    }
    // This clock counts from the start of the machine, sleep included (clock_gettime(3)).
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = Duration::from_secs(u64::try_from(since.tv_sec).unwrap_or(0));
    let nanos = Duration::from_nanos(u64::try_from(since.tv_nsec).unwrap_or(0));
    Ok(MachineBoot { id, uptime: seconds + nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_is_the_same_when_read_again() {
        let (first, second) = (read_boot().unwrap(), read_boot().unwrap());
        assert_eq!(first.id, second.id);
        assert!(first.uptime > Duration::ZERO && second.uptime >= first.uptime);
    }
}

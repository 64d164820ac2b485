//! [`read_boot`]: identifies the current boot of the machine.

use std::io;
use std::time::Duration;

/// The boot of the machine in which this process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineBoot {
    /// Different after each boot.
    pub id: String,
    /// Time since the boot, including sleep.
    pub uptime: Duration,
}

/// Reads the current boot.
///
/// # Errors
/// The system does not identify it.
#[cfg(target_os = "linux")]
pub(crate) fn read_boot() -> io::Result<MachineBoot> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    if id.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the boot id is empty"));
    }
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = Duration::from_secs(u64::try_from(since.tv_sec).unwrap_or(0));
    let nanos = Duration::from_nanos(u64::try_from(since.tv_nsec).unwrap_or(0));
    Ok(MachineBoot { id, uptime: seconds + nanos })
}

/// Reads the current boot.
///
/// # Errors
/// The system does not identify it.
#[cfg(target_os = "macos")]
pub(crate) fn read_boot() -> io::Result<MachineBoot> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "kern.bootsessionuuid"]).output()?;
    let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || id.is_empty() {
        return Err(io::Error::other("sysctl does not know kern.bootsessionuuid"));
    }
    // This clock counts from the boot, including sleep (clock_gettime(3)).
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = Duration::from_secs(u64::try_from(since.tv_sec).unwrap_or(0));
    let nanos = Duration::from_nanos(u64::try_from(since.tv_nsec).unwrap_or(0));
    Ok(MachineBoot { id, uptime: seconds + nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_read_gives_the_same_boot() {
        let (first, second) = (read_boot().unwrap(), read_boot().unwrap());
        assert_eq!(first.id, second.id);
        assert!(first.uptime > Duration::ZERO && second.uptime >= first.uptime);
    }
}

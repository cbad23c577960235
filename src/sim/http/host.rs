//! What the simulated pods take from the process: the date, tasks, and a flag to wait on.
use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

pub(super) use crate::runtime::now;
use crate::runtime::{supervise, unix_ms};

/// Starts a task that ends by itself.
pub(super) fn spawn(name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    supervise(name, task).detach();
}

/// Comes back when the flag is raised, or when nobody can raise it any more.
pub(super) async fn raised(flag: &mut watch::Receiver<bool>) {
    drop(flag.wait_for(|is_raised| *is_raised).await);
}

/// Wall clock since 1970.
pub(super) fn unix() -> Duration {
    Duration::from_millis(unix_ms())
}

/// `Sun, 22 Nov 2026 05:09:14 GMT` (RFC 9110, 5.6.7).
pub(super) fn http_date(unix_seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, rest) = (unix_seconds / 86_400, unix_seconds % 86_400);
    // Days to civil date, Howard Hinnant's algorithm, for dates after 1970.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let name = DAYS.get((days % 7) as usize).unwrap_or(&"Thu");
    let month = MONTHS.get(month as usize - 1).unwrap_or(&"Jan");
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{name}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_as_uvicorn_writes_them() {
        assert_eq!(http_date(1_795_324_154), "Sun, 22 Nov 2026 05:09:14 GMT");
        assert_eq!(http_date(1_709_164_800), "Thu, 29 Feb 2024 00:00:00 GMT");
    }
}

//! What a client was promised about time.

/// Service level objectives of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slo {
    /// Time to the first token \[seconds\]; `None`: no promise.
    pub ttft_s: Option<f64>,
    /// Mean time between tokens \[seconds\]; `None`: no promise.
    pub itl_s: Option<f64>,
}

impl Slo {
    /// Whether a request that got this came late with its first token, and whether it was slow after it.
    pub fn missed(&self, ttft_s: f64, itl_s: Option<f64>) -> (bool, bool) {
        let is_late = self.ttft_s.is_some_and(|most| ttft_s > most);
        (is_late, self.itl_s.zip(itl_s).is_some_and(|(most, itl_s)| itl_s > most))
    }

    /// Whether a request that got this was `kept` to, came `late` or was `slow`; `None` if nothing was promised.
    pub fn judge(&self, ttft_s: f64, itl_s: Option<f64>) -> Option<&'static str> {
        match self.missed(ttft_s, itl_s) {
            _ if self.ttft_s.is_none() && self.itl_s.is_none() => None,
            (true, _) => Some("late"),
            (false, true) => Some("slow"),
            (false, false) => Some("kept"),
        }
    }
}

//! Keeps ejected pods out, lets a recovering one take its share, and ignores ejection when most pods are out.
//!
//! Reads: `standing` (outcomes of our own requests, current), `load` (own bookings), the request's excluded pods.
//! Drops: ejected pods; a half-open pod that already has a request without its first token; a ramping pod whose requests
//!   in flight have reached its share of the mean over the ready pods (but it may always have one).
//! Range: keep or drop. *Panic*: when more than `ejected_share_max` of the pods are out for this request (ejected, half open
//!   or already tried), those come back. While usable pods are left each gets one unanswered request at a time, and no
//!   retry goes there, so that dead pods, which look idle, do not draw the traffic; with none left there is no restraint.
//! Unknown: a pod never tried is as its standing says (new pods ramp); if no pod is ready there is nothing to ramp against.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pods::Standing;
use crate::scheduling::{Candidates, Context, Filter, Nobody, PodView, Verdict};

/// Settings of `health`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Share of the pods that may be out before ejection is ignored \[0 to 1\].
    pub ejected_share_max: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { ejected_share_max: 0.5 }
    }
}

#[derive(Debug)]
struct Health(Settings);

/// Makes the filter.
pub fn build(settings: &Settings) -> Box<dyn Filter> {
    Box::new(Health(settings.clone()))
}

/// What the single verdicts depend on.
struct Fleet {
    is_panic: bool,
    has_usable: bool,
    is_retry: bool,
    /// Mean requests in flight of the ready pods that are left; `None` without one.
    fair: Option<f64>,
}

impl Health {
    fn survey(&self, cx: &Context<'_>, pods: &Candidates<'_>) -> Fleet {
        let (mut out, mut usable, mut ready, mut requests) = (0_usize, 0_usize, 0_u32, 0.0);
        for pod in pods.iter() {
            let is_out = matches!(pod.standing, Standing::Ejected(_) | Standing::Probe);
            if is_out || cx.request.excluded.contains(&pod.id) {
                out += 1;
                continue;
            }
            usable += 1;
            if pod.standing == Standing::Ready {
                ready += 1;
                requests += f64::from(pod.load.requests);
            }
        }
        Fleet {
            is_panic: out as f64 > self.0.ejected_share_max * pods.len() as f64,
            has_usable: usable > 0,
            is_retry: !cx.request.excluded.is_empty(),
            fair: (ready > 0).then(|| requests / f64::from(ready)),
        }
    }
}

fn verdict(fleet: &Fleet, pod: &PodView) -> Verdict {
    let is_half_open = match pod.standing {
        Standing::Ready => return Verdict::Keep,
        Standing::Ramp(share) => {
            let has_room = fleet.fair.is_none_or(|fair| f64::from(pod.load.requests) < (fair * share).floor().max(1.0));
            return if has_room { Verdict::Keep } else { Verdict::Drop("has its share while it recovers") };
        }
        Standing::Ejected(_) => false,
        Standing::Probe => true,
    };
    match fleet {
        Fleet { has_usable: false, is_panic: true, .. } => Verdict::Keep,
        Fleet { is_panic: false, .. } if !is_half_open => Verdict::Drop("ejected"),
        Fleet { is_retry: true, has_usable: true, .. } => Verdict::Drop("not for a retry while better pods are left"),
        _ if pod.load.prefilling > 0 => Verdict::Drop("its probe is out"),
        _ => Verdict::Keep,
    }
}

impl Filter for Health {
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        if pods.iter().all(|pod| pod.standing == Standing::Ready) {
            return;
        }
        let fleet = self.survey(cx, pods);
        for (pod, slot) in pods.iter().zip(verdicts) {
            *slot = verdict(&fleet, pod);
        }
    }

    fn nobody(&self) -> Nobody {
        Nobody::AllEjected
    }

    fn yields_to_pin(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::{Mono, PodId, Tokens};
    use crate::scheduling::Request;
    use crate::scheduling::testing::{judged, loaded};

    const OUT: Standing = Standing::Ejected(Mono(9));

    /// Pods as (standing, requests in flight, of these prefilling).
    fn check(excluded: &[u32], pods: &[(Standing, u32, u32)], kept: &[bool]) {
        let excluded: Vec<_> = excluded.iter().copied().map(PodId).collect();
        let request = Request { excluded: &excluded, ..Request::new("m", Tokens(10)) };
        let view = |(id, &(standing, requests, prefilling)): (u32, &(Standing, u32, u32))| PodView {
            standing,
            ..loaded(id, requests, prefilling, 0)
        };
        let pods: Vec<_> = (0..).zip(pods).map(view).collect();
        assert_eq!(judged(&*build(&Settings::default()), &request, &pods), kept, "{pods:?}");
    }

    #[test]
    fn ejected_pods_are_out_until_most_are() {
        use Standing::{Probe, Ready};
        check(&[], &[(Ready, 5, 0), (Ready, 5, 0), (OUT, 0, 0)], &[true, true, false]);
        check(&[], &[(Ready, 5, 0), (OUT, 0, 0)], &[true, false]);
        check(&[], &[(Ready, 5, 0), (OUT, 0, 0), (OUT, 3, 1)], &[true, true, false]);
        check(&[], &[(OUT, 5, 5), (OUT, 9, 9)], &[true, true]);
        check(&[], &[(OUT, 1, 1)], &[true]);
        check(&[], &[(Probe, 4, 4)], &[true]);
    }

    #[test]
    fn a_half_open_pod_gets_one_request_and_no_retry() {
        use Standing::{Probe, Ready};
        check(&[], &[(Ready, 0, 0), (Ready, 0, 0), (Probe, 3, 0)], &[true, true, true]);
        check(&[], &[(Ready, 0, 0), (Ready, 0, 0), (Probe, 3, 1)], &[true, true, false]);
        check(&[0], &[(Ready, 0, 0), (Ready, 0, 0), (Probe, 0, 0)], &[true, true, false]);
    }

    #[test]
    fn a_retry_prefers_pods_in_good_standing_and_takes_what_is_left() {
        use Standing::Ready;
        check(&[1], &[(Ready, 5, 0), (OUT, 0, 0), (OUT, 0, 0)], &[true, false, false]);
        check(&[0], &[(Ready, 5, 0), (OUT, 0, 0)], &[true, true]);
        check(&[0], &[(Ready, 5, 0), (Standing::Ramp(0.1), 50, 0)], &[true, true]);
    }

    #[test]
    fn a_ramping_pod_takes_its_share() {
        use Standing::{Ramp, Ready};
        check(&[], &[(Ready, 20, 0), (Ready, 20, 0), (Ramp(0.5), 9, 0)], &[true, true, true]);
        check(&[], &[(Ready, 20, 0), (Ready, 20, 0), (Ramp(0.5), 10, 0)], &[true, true, false]);
        check(&[], &[(Ready, 0, 0), (Ramp(0.1), 0, 0), (Ramp(0.1), 1, 0)], &[true, true, false]);
        check(&[], &[(Ramp(0.1), 30, 0), (Ramp(0.2), 90, 0)], &[true, true]);
    }
}

"""How long, how often, how many: in one place, so that a test can be short-tempered."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The patience of the alerts; what a team may choose is in `Settings` instead."""

    look_s: float = 0.25  #            the poll is the truth, a wake-up only a hint
    seen_after_s: float = 1.0  #       counts that grow are looked at so seldom, whatever the rate of errors
    marked_at_once: int = 500  #       groups that one look takes
    lease_ttl_s: float = 12.0  #       with one renewal missed, taken over within 15 s
    lease_renew_s: float = 2.5
    claim_s: float = 30.0  #           longer than any attempt may take
    attempt_s: float = 20.0
    retry_first_s: float = 1.0  #      doubles with each attempt …
    retry_max_s: float = 30.0  #       … up to this
    slow_retry_max_s: float = 900.0  # … or to this, where asking often is held against us
    park_s: float = 600.0  #           a target that refuses is asked again after this
    forget_s: float = 3600.0  #        what waits longer for a target that is not set up has failed
    edit_every_s: float = 30.0  #      counts in a message may be this old
    fold_edit_every_s: float = 3.0  #  a fold that grows names who joined this soon
    fold_mail_every_s: float = 60.0  # … and by mail, which cannot be edited, this soon
    fold_window_s: float = 30.0
    fold_at_most_s: float = 300.0  #   then a storm rings again
    fold_groups: int = 250  #          whose numbers fit in one message
    poll_s: float = 25.0  #            how long Telegram may hold a request for updates
    bot_retry_max_s: float = 60.0
    away_s: float = 1.0  #             pause between looks while the database is away
    stop_s: float = 4.0  #             what may still be under way when stopping
    snapshot_s: float = 2.0  #         age of what health reads
    outages_every_s: float = 5.0  #    between two looks for outages that nobody is left to end
    missing_after_s: float = 30.0  #   after a start or an outage: signs of life may wait in spools
    prune_after_s: float = 30.0  #     a server that has just started has better things to do
    prune_every_s: float = 3600.0  #   what is too old or too much may stay so long
    prune_size_every_s: float = 60.0  # … but for what there is no room for

"""The early ``error_logs`` as its first users run it, with a few rows; the same table for SQLite."""

from __future__ import annotations

_CATEGORIES = "'amocrm', 'telegram', 'database', 'queue', 'api', 'validation', 'network', 'authentication', 'unknown'"

POSTGRES = f"""
create table public.error_logs (
    id          uuid primary key default gen_random_uuid(),
    severity    text not null check (severity in ('low', 'medium', 'high', 'critical')),
    category    text not null check (category in ({_CATEGORIES})),
    message     text not null,
    stack       text,
    context     jsonb default '{{}}',
    environment text not null default 'development',
    resolved    boolean default false,
    timestamp   timestamptz not null default now(),
    resolved_at timestamptz,
    created_at  timestamptz default now()
);
create index idx_error_logs_severity    on public.error_logs (severity);
create index idx_error_logs_category    on public.error_logs (category);
create index idx_error_logs_timestamp   on public.error_logs (timestamp desc);
create index idx_error_logs_resolved    on public.error_logs (resolved);
create index idx_error_logs_environment on public.error_logs (environment);
create index idx_error_logs_context     on public.error_logs using gin (context);
alter table public.error_logs enable row level security;
"""

SQLITE = f"""
create table error_logs (
    id          text primary key,
    severity    text not null check (severity in ('low', 'medium', 'high', 'critical')),
    category    text not null check (category in ({_CATEGORIES})),
    message     text not null,
    stack       text,
    context     text default '{{}}',
    environment text not null default 'development',
    resolved    boolean default false,
    timestamp   text not null,
    resolved_at text,
    created_at  text,
    reporter    text
);
create index idx_error_logs_severity  on error_logs (severity);
create index idx_error_logs_timestamp on error_logs (timestamp desc);
"""

ROWS = """
insert into error_logs
  (id, severity, category, message, stack, context, environment, resolved, timestamp, resolved_at, created_at) values
 ('7d3f3a52-0c8e-4f0e-9e39-0f6a1f0b5a01', 'high', 'amocrm', 'Request failed with status code 504', 'AxiosError: …',
  '{"leadId": "123", "metadata": {"attempt": 3}}', 'production', false,
  '2025-12-20T08:00:01.000000+00:00', null, '2025-12-20T08:00:02.000000+00:00'),
 ('7d3f3a52-0c8e-4f0e-9e39-0f6a1f0b5a02', 'critical', 'database', 'connect ECONNREFUSED 127.0.0.1:5432', null,
  '{}', 'production', true,
  '2025-12-21T02:14:00.000000+00:00', '2025-12-21T02:40:00.000000+00:00', null),
 ('7d3f3a52-0c8e-4f0e-9e39-0f6a1f0b5a03', 'medium', 'validation', '', null,
  null, 'development', null,
  '2025-12-22T07:00:00.000000+00:00', null, '2025-12-22T07:00:00.000000+00:00');
"""

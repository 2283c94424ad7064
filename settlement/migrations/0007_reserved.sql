ALTER TYPE outgoing_kind ADD VALUE 'release';
ALTER TYPE outgoing_kind ADD VALUE 'collect';
ALTER TYPE outgoing_kind ADD VALUE 'answer';
ALTER TYPE outgoing_kind ADD VALUE 'heartbeat';

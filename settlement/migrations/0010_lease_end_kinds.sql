-- Two more kinds of transfers. A new value of a type can be used only once it is committed.
ALTER TYPE transfer_kind ADD VALUE 'handed';
ALTER TYPE transfer_kind ADD VALUE 'ended';

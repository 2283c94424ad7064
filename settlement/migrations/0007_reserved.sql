-- For what is told to the vault.
COMMENT ON TABLE outgoing IS 'what is told to the vault';

/* A whole client in plain JavaScript, for node and for browsers: it learns the protocol from
   /asyncapi.json, says nothing that the document does not allow, and takes nothing else either.

   Four parts: what the document says, one connection, an account, and a trader's day as an example.
   It needs a WebSocket, fetch, and of a wallet `address` and `signTypedData(domain, types, value)`
   (of ethers, viem's differs in the arguments' form). */

/** What is wrong with a value by a schema of JSON Schema, draft 7, as far as the document uses it;
 *  empty if nothing is. */
export function faults(schema, value, root, at = "") {
  if (schema.$ref) return faults(resolve(root, schema.$ref), value, root, at);
  if (schema.anyOf) {
    const tried = schema.anyOf.map((one) => faults(one, value, root, at));
    return tried.some((found) => !found.length) ? [] : tried.flat();
  }
  if (schema.enum && !schema.enum.includes(value)) return [`${at} is none of ${schema.enum}`];
  const kind = kindOf(value);
  if (schema.type && schema.type !== kind) return [`${at} is no ${schema.type}`];
  switch (kind) {
    case "integer":
      if (value < (schema.minimum ?? -Infinity)) return [`${at} is below ${schema.minimum}`];
      if (value > (schema.maximum ?? Infinity)) return [`${at} is above ${schema.maximum}`];
      return [];
    case "string":
      return value.length > (schema.maxLength ?? Infinity) ? [`${at} is too long`] : [];
    case "array":
      return faultsOfItems(schema, value, root, at);
    case "object":
      return faultsOfProperties(schema, value, root, at);
    default:
      return [];
  }
}

function kindOf(value) {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  if (typeof value === "number") return Number.isSafeInteger(value) ? "integer" : "number";
  return typeof value;
}

function faultsOfItems(schema, value, root, at) {
  if (value.length < (schema.minItems ?? 0)) return [`${at} has too few`];
  if (value.length > (schema.maxItems ?? Infinity)) return [`${at} has too many`];
  const each = schema.items ?? {};
  return value.flatMap((item, i) =>
    faults(Array.isArray(each) ? (each[i] ?? {}) : each, item, root, `${at}[${i}]`));
}

function faultsOfProperties(schema, value, root, at) {
  const known = schema.properties ?? {};
  const missing = (schema.required ?? []).filter((name) => !(name in value));
  if (missing.length) return [`${at} lacks ${missing}`];
  return Object.entries(value).flatMap(([name, inner]) => {
    if (name in known) return faults(known[name], inner, root, `${at}.${name}`);
    const rest = schema.additionalProperties ?? true;
    if (rest === false) return [`${at} knows no ${name}`];
    return rest === true ? [] : faults(rest, inner, root, `${at}.${name}`);
  });
}

function resolve(root, reference) {
  const names = reference.slice(2).split("/");
  return names.reduce((inside, name) => inside[name], root);
}

/** What the document says: how requests and messages are made, and what answers what. */
export class Protocol {
  constructor(document) {
    this.document = document;
    this.rejects = new Map(document.info["x-rejects"].map((one) => [one.reason, one.code]));
  }

  /** From a node: `at` is its address, like http://127.0.0.1:8765. */
  static async of(at) {
    const answer = await fetch(new URL("/asyncapi.json", at));
    return new Protocol(await answer.json());
  }

  /** Where the websocket is, by the document's one channel. */
  address(at) {
    const url = new URL(this.document.channels.websocket.address, at);
    url.protocol = url.protocol.replace("http", "ws");
    return url.href;
  }

  /** The message, if the document has one like it. */
  checked(message) {
    const described = this.document.components.messages[message.t];
    if (!described) throw new TypeError(`no message is called ${message.t}`);
    const found = faults(described.payload, message, this.document, message.t);
    if (found.length) throw new TypeError(found.join("; "));
    return message;
  }

  request(t, fields) {
    if (this.document.operations[t]?.action !== "receive") {
      throw new TypeError(`no request is called ${t}`);
    }
    return this.checked({ t, ...fields });
  }

  /** Whether a message may answer such a request. */
  answers(request, message) {
    const { reply } = this.document.operations[request];
    return reply.messages.some(({ $ref }) => $ref.endsWith(`/${message.t}`));
  }

  /** (domain, types) of what a wallet signs; `hello` completes the domain. */
  typed(primary, hello) {
    const { domain, types } = this.document.info["x-eip712"];
    const whole = { ...domain, chainId: hello.chain_id, verifyingContract: hello.vault };
    return [whole, { [primary]: types[primary] }];
  }
}

/** A request that was refused, by its number. */
export class Refused extends Error {
  constructor(reject) {
    super(`${reject.code} ${reject.reason}: ${reject.message}`);
    this.reject = reject;
  }
}

/** One websocket: requests by `ask`, everything else by `next(tag)`, in the order it came. */
export class Connection {
  #asked = new Map(); // id → what was asked, and who waits
  #heard = []; // not asked for by id, and not taken yet
  #takers = [];
  #lastId = 0;

  constructor(protocol, socket) {
    this.protocol = protocol;
    this.received = 0;
    this.failure = null;
    this.socket = socket;
    this.closed = new Promise((over) => {
      socket.addEventListener("close", () => {
        this.#fail(new Error("the connection is closed"));
        over();
      });
    });
    socket.addEventListener("error", () => this.#fail(new Error("the connection failed")));
    socket.addEventListener("message", ({ data }) => this.#take(data));
  }

  static async open(protocol, at, Socket = globalThis.WebSocket) {
    const connection = new Connection(protocol, new Socket(protocol.address(at)));
    connection.hello = await connection.next("hello");
    return connection;
  }

  ask(t, fields = {}) {
    const request = this.protocol.request(t, { id: ++this.#lastId, ...fields });
    return new Promise((done, fail) => {
      if (this.failure) return fail(this.failure);
      this.#asked.set(request.id, { t, done, fail });
      this.socket.send(JSON.stringify(request));
    });
  }

  /** The next message of this kind for which `wanted` holds; those before it are dropped. */
  next(tag, wanted = () => true) {
    return new Promise((done, fail) => {
      this.#takers.push({ wants: (x) => x.t === tag && wanted(x), done, fail });
      this.#give();
    });
  }

  async login(wallet) {
    const { hello, protocol } = this;
    const value = { wallet: wallet.address, nonce: hello.nonce };
    const signature = await wallet.signTypedData(...protocol.typed("Login", hello), value);
    return this.ask("login", { ...value, signature });
  }

  close() {
    this.socket.close();
    return this.closed;
  }

  #take(data) {
    try {
      const message = this.protocol.checked(JSON.parse(data));
      this.received += 1;
      const asked = this.#asked.get(message.id);
      if (!asked) {
        this.#heard.push(message);
      } else if (this.protocol.answers(asked.t, message)) {
        this.#asked.delete(message.id);
        if (message.t === "reject") asked.fail(new Refused(message));
        else asked.done(message);
      }
      this.#give();
    } catch (error) {
      this.#fail(error);
      this.socket.close();
    }
  }

  #give() {
    while (this.#takers.length) {
      const [{ wants, done, fail }] = this.#takers;
      const at = this.#heard.findIndex(wants);
      if (at < 0 && !this.failure) return;
      this.#takers.shift();
      if (at < 0) fail(this.failure);
      else done(this.#heard.splice(0, at + 1).at(-1));
    }
  }

  #fail(error) {
    this.failure ??= error;
    for (const { fail } of this.#asked.values()) fail(this.failure);
    this.#asked.clear();
    this.#give();
  }
}

/** A trader's day: log in, place, trade, cancel, be refused, come back, and know what happened. */
export async function tradingDay(at, market, wallet, Socket) {
  const protocol = await Protocol.of(at);
  const first = await Connection.open(protocol, at, Socket);
  const { account } = await first.login(wallet);
  await first.ask("subscribe", { channel: "account" });
  await first.next("account_snapshot");
  await first.ask("subscribe", { channel: "book", market });
  const book = await first.next("book_snapshot");
  const [best] = book.asks[0];

  const bid = { market, side: "buy", price: "1.0000", qty: "2", client_id: 1, post_only: true };
  const placed = await first.ask("new", bid);
  const taking = { market, side: "buy", price: best, qty: "4", client_id: 2, tif: "ioc" };
  const traded = await first.ask("new", taking);
  const fill = await first.next("fill", (x) => x.client_id === 2);
  const cancelled = await first.ask("cancel", { client_id: 1 });
  const left = await first.next("order", (x) => x.client_id === 1 && x.state === "cancelled");
  const refused = await first.ask("new", { ...bid, qty: "0", client_id: 3 }).catch((e) => e);
  let unsaid = "";
  try {
    await first.ask("new", { ...bid, side: "hold" });
  } catch (error) {
    unsaid = error.message; // the document forbids it, so it was not even sent
  }
  await first.close();

  // Nothing is taken for granted after a break: the same request again is answered, not repeated.
  const again = await Connection.open(protocol, at, Socket);
  await again.login(wallet);
  await again.ask("subscribe", { channel: "account" });
  const now = await again.next("account_snapshot");
  const repeated = await again.ask("new", taking);
  const { order } = await again.ask("query", { what: "order", client_id: 2 });
  const { token } = await again.ask("token", { seconds: 60 });
  const headers = { Authorization: `Bearer ${token}` };
  const answer = await fetch(new URL("/api/v1/account/balances", at), { headers });
  const money = await answer.json();
  await again.close();
  return {
    account, best, fill, unsaid,
    placed: placed.order_id,
    level: placed.level,
    cancelled: cancelled.qty,
    isRefused: refused.reject?.code === protocol.rejects.get("QTY_OUT_OF_RANGE"),
    missed: now.aseq - left.aseq,
    open: now.orders.length,
    isSame: repeated.dup === true && repeated.order_id === traded.order_id,
    state: order.state,
    money,
    received: first.received + again.received,
  };
}

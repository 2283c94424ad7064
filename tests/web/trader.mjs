/* The trader under node: node trader.mjs http://127.0.0.1:8765 MARKET, the key in COMPEX_KEY.
   What became of it goes to standard output as JSON. Needs `npm ci` beside it. */

import { Wallet } from "ethers";
import WebSocket from "ws";

import { tradingDay } from "./trader.js";

const [at, market] = process.argv.slice(2);
const wallet = new Wallet(process.env.COMPEX_KEY);
console.log(JSON.stringify(await tradingDay(at, market, wallet, WebSocket)));

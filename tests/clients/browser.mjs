// A page in Chromium uses a bucket of another origin: presigned PUT and GET, forms, parts. It may what the
// bucket's CORS rules say: another origin, another method, another header, and a bucket without rules fail in
// the browser.

import { createHash, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { isDeepStrictEqual } from "node:util";

const require = createRequire(`${process.env.CAIRN_TEST_NODE}/package.json`);
const S3 = require("@aws-sdk/client-s3");
const { getSignedUrl } = require("@aws-sdk/s3-request-presigner");
const { createPresignedPost } = require("@aws-sdk/s3-presigned-post");
const { chromium } = require("playwright-core");

const endpoint = new URL(process.env.CAIRN_ENDPOINT);
const s3 = new S3.S3Client({
  endpoint: endpoint.origin,
  region: "us-east-1",
  forcePathStyle: true,
  // Headers of checksums in the query are for sdk.mjs.
  requestChecksumCalculation: "WHEN_REQUIRED",
  responseChecksumValidation: "WHEN_REQUIRED",
});
const send = (operation, input) => s3.send(new S3[`${operation}Command`](input));
const md5 = (data) => createHash("md5").update(data).digest("hex");
const stored = async (Bucket, Key) =>
  Buffer.from(await (await send("GetObject", { Bucket, Key })).Body.transformToByteArray());

/** A presigned URL. `x-amz-meta-` headers are left to who uses it, who must send them as they were signed. */
function sign(operation, input) {
  const names = Object.keys(input.Metadata ?? {}).map((name) => `x-amz-meta-${name}`);
  const options = { expiresIn: 300, unhoistableHeaders: new Set(names) };
  return getSignedUrl(s3, new S3[`${operation}Command`](input), options);
}

function equal(found, expected, what) {
  if (isDeepStrictEqual(found, expected)) return;
  throw new Error(`${what}: found ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
}

/** What a page does: it is run in the browser, and knows nothing of the above. */
const inPage = {
  /** Status, headers that the page may see, and body; or the error that the browser shows a page. */
  async ask({ url, method, headers, body, mode }) {
    const bytes = body && Uint8Array.from(atob(body), (one) => one.charCodeAt(0));
    try {
      // The browser's cache would answer by itself.
      const answer = await fetch(url, { method, headers, body: bytes, mode, cache: "no-store" });
      const got = new Uint8Array(await answer.arrayBuffer());
      let text = "";
      for (let at = 0; at < got.length; at += 30_000)
        text += String.fromCharCode(...got.subarray(at, at + 30_000));
      return { status: answer.status, headers: Object.fromEntries(answer.headers), body: btoa(text) };
    } catch (error) {
      return { error: String(error) };
    }
  },
  async form({ url, fields, body, name }) {
    const form = new FormData();
    for (const [field, value] of Object.entries(fields)) form.append(field, value);
    form.append("file", new Blob([Uint8Array.from(atob(body), (one) => one.charCodeAt(0))]), name);
    try {
      const answer = await fetch(url, { method: "POST", body: form });
      return { status: answer.status, etag: answer.headers.get("etag"), text: await answer.text() };
    } catch (error) {
      return { error: String(error) };
    }
  },
  /** As older pages do, with events of the upload. */
  xhr({ url, headers, body }) {
    return new Promise((done) => {
      const request = new XMLHttpRequest();
      let sent = 0;
      request.upload.onprogress = (event) => (sent = event.loaded);
      request.onload = () => done({ status: request.status, etag: request.getResponseHeader("etag"), sent });
      request.onerror = () => done({ error: "an error" });
      request.open("PUT", url);
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      request.send(Uint8Array.from(atob(body), (one) => one.charCodeAt(0)));
    });
  },
};

const FAILED = { error: "TypeError: Failed to fetch" };
const RULES = (origin, more = {}) => ({
  AllowedOrigins: [origin],
  AllowedMethods: ["GET", "PUT", "POST", "HEAD"],
  AllowedHeaders: ["content-type", "x-amz-meta-*"],
  ExposeHeaders: ["ETag", "x-amz-meta-who"],
  MaxAgeSeconds: 0,
  ...more,
});
const allow = (Bucket, ...CORSRules) => send("PutBucketCors", { Bucket, CORSConfiguration: { CORSRules } });

/** A page that is served at this origin; `origin` has its port. */
async function pageAt(browser, origin) {
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(`${origin}/`);
  equal(await page.evaluate("location.origin"), origin, "the origin");
  return page;
}

async function uploadAndReadBack({ page, bucket, origin }) {
  await allow(bucket, RULES(origin));
  for (const size of [0, 1, 3_000_001]) {
    const [data, Key] = [randomBytes(size), `ü put/${size}`];
    const url = await sign("PutObject", {
      Bucket: bucket,
      Key,
      ContentType: "text/x",
      Metadata: { who: "a page" },
    });
    const headers = { "content-type": "text/x", "x-amz-meta-who": "a page" };
    const put = await page.evaluate(inPage.ask, {
      url,
      method: "PUT",
      headers,
      body: data.toString("base64"),
    });
    equal([put.status, put.headers?.etag], [200, `"${md5(data)}"`], `PUT of ${size} bytes: ${put.error}`);
    const head = await send("HeadObject", { Bucket: bucket, Key });
    equal([head.ContentType, head.Metadata], ["text/x", { who: "a page" }], "headers");
    equal(md5(await stored(bucket, Key)), md5(data), "what is stored");

    const got = await page.evaluate(inPage.ask, {
      url: await sign("GetObject", { Bucket: bucket, Key }),
      method: "GET",
    });
    equal([got.status, md5(Buffer.from(got.body ?? "", "base64"))], [200, md5(data)], `GET: ${got.error}`);
    equal([got.headers.etag, got.headers["x-amz-meta-who"]], [put.headers.etag, "a page"], "exposed headers");
    equal(
      [got.headers["x-amz-request-id"], got.headers.date],
      [undefined, undefined],
      "headers that are not exposed",
    );
    equal(
      [got.headers["content-type"], got.headers["content-length"]],
      ["text/x", String(size)],
      "those that always are",
    );
  }
  const data = randomBytes(2_000_000);
  const url = await sign("PutObject", { Bucket: bucket, Key: "xhr", ContentType: "text/x" });
  const input = { url, headers: { "content-type": "text/x" }, body: data.toString("base64") };
  equal(
    await page.evaluate(inPage.xhr, input),
    { status: 200, etag: `"${md5(data)}"`, sent: data.length },
    "XMLHttpRequest",
  );
  equal(md5(await stored(bucket, "xhr")), md5(data), "what it stored");
}

async function refusalsAreReadable({ page, bucket, origin }) {
  await allow(bucket, RULES(origin));
  const url = await sign("GetObject", { Bucket: bucket, Key: "none" });
  const none = await page.evaluate(inPage.ask, { url, method: "GET" });
  equal([none.status, Buffer.from(none.body, "base64").includes("NoSuchKey")], [404, true], "no such key");
  const wrong = await page.evaluate(inPage.ask, {
    url: url.replace("Expires=300", "Expires=301"),
    method: "GET",
  });
  equal(
    [wrong.status, Buffer.from(wrong.body, "base64").includes("SignatureDoesNotMatch")],
    [403, true],
    "a wrong signature",
  );
}

async function forms({ page, bucket, origin }) {
  await allow(bucket, RULES(origin));
  const data = randomBytes(1_500_000);
  const Conditions = [
    ["content-length-range", 1, 2_000_000],
    ["starts-with", "$x-amz-meta-who", ""],
  ];
  const Fields = { "Content-Type": "text/x", success_action_status: "201" };
  const made = await createPresignedPost(s3, { Bucket: bucket, Key: "form/${filename}", Conditions, Fields });
  const post = (body, more = {}) =>
    page.evaluate(inPage.form, {
      url: made.url,
      fields: { ...made.fields, "x-amz-meta-who": "a form", ...more },
      body: body.toString("base64"),
      name: "ü ä.bin",
    });
  const done = await post(data);
  equal([done.status, done.etag], [201, `"${md5(data)}"`], `a form: ${JSON.stringify(done)}`);
  equal(done.text.includes(md5(data)), true, "its document");
  const head = await send("HeadObject", { Bucket: bucket, Key: "form/ü ä.bin" });
  equal([head.ContentType, head.Metadata], ["text/x", { who: "a form" }], "what its fields said");
  equal(md5(await stored(bucket, "form/ü ä.bin")), md5(data), "its file");
  const large = await post(randomBytes(2_000_001));
  equal(
    [large.status, large.text?.includes("EntityTooLarge")],
    [400, true],
    `too large: ${JSON.stringify(large)}`,
  );
  equal(
    (await post(data, { "x-amz-meta-other": "1" })).status,
    403,
    "a field of which the policy says nothing",
  );
  equal(md5(await stored(bucket, "form/ü ä.bin")), md5(data), "after refused forms");
}

/** A form that a page submits by itself needs no rule: the browser goes where it leads. */
async function aFormThatIsSubmitted({ page, bucket, origin }) {
  const Fields = { success_action_redirect: `${origin}/after` };
  const made = await createPresignedPost(s3, { Bucket: bucket, Key: "submitted", Fields });
  await page.evaluate(({ url, fields }) => {
    const form = Object.assign(document.createElement("form"), {
      method: "POST",
      action: url,
      enctype: "multipart/form-data",
    });
    for (const [name, value] of Object.entries(fields))
      form.append(Object.assign(document.createElement("input"), { name, value }));
    const file = Object.assign(document.createElement("input"), { type: "file", name: "file", id: "file" });
    form.append(file);
    document.body.append(form);
  }, made);
  const data = randomBytes(70_000);
  await page.setInputFiles("#file", { name: "f.bin", mimeType: "application/x-f", buffer: data });
  await Promise.all([page.waitForURL(`${origin}/after?**`), page.evaluate(() => document.forms[0].submit())]);
  const { searchParams } = new URL(page.url());
  equal(
    [searchParams.get("bucket"), searchParams.get("key"), searchParams.get("etag")],
    [bucket, "submitted", `"${md5(data)}"`],
    "where it led",
  );
  equal(md5(await stored(bucket, "submitted")), md5(data), "its file");
}

async function uploadsInParts({ page, bucket, origin }) {
  await allow(bucket, RULES(origin));
  const [k, data] = [{ Bucket: bucket, Key: "parts" }, randomBytes(6 * 1024 * 1024)];
  const { UploadId } = await send("CreateMultipartUpload", k);
  const Parts = [];
  for (const [index, part] of [data.subarray(0, 5 * 1024 * 1024), data.subarray(5 * 1024 * 1024)].entries()) {
    const url = await sign("UploadPart", { ...k, UploadId, PartNumber: index + 1 });
    const put = await page.evaluate(inPage.ask, { url, method: "PUT", body: part.toString("base64") });
    equal(put.status, 200, `part ${index + 1}: ${put.error}`);
    Parts.push({ PartNumber: index + 1, ETag: put.headers.etag });
  }
  await send("CompleteMultipartUpload", { ...k, UploadId, MultipartUpload: { Parts } });
  equal(md5(await stored(bucket, "parts")), md5(data), "what is stored");
}

/** Nothing that the page tries may work, and nothing that needs asking first may have been done. */
async function allFails(page, bucket, what) {
  const [body, key] = [randomBytes(1000).toString("base64"), "denied"];
  await send("PutObject", { Bucket: bucket, Key: "there", Body: "there" });
  const headers = { "content-type": "text/x", "x-amz-meta-who": "a page" };
  const put = await sign("PutObject", {
    Bucket: bucket,
    Key: key,
    ContentType: "text/x",
    Metadata: { who: "a page" },
  });
  const get = await sign("GetObject", { Bucket: bucket, Key: "there" });
  const drop = await sign("DeleteObject", { Bucket: bucket, Key: "there" });
  for (const [name, asked] of Object.entries({
    PUT: { url: put, method: "PUT", headers, body },
    GET: { url: get, method: "GET" },
    DELETE: { url: drop, method: "DELETE" },
  })) {
    equal(await page.evaluate(inPage.ask, asked), FAILED, `${name}, ${what}`);
  }
  const xhr = await page.evaluate(inPage.xhr, { url: put, headers, body });
  equal(xhr, { error: "an error" }, `XMLHttpRequest, ${what}`);
  const { Contents } = await send("ListObjectsV2", { Bucket: bucket });
  equal(
    Contents.map((one) => one.Key),
    ["there"],
    `what is stored, ${what}`,
  );
  // A form is sent without asking; but the page does not see what became of it.
  const made = await createPresignedPost(s3, { Bucket: bucket, Key: "form" });
  const form = await page.evaluate(inPage.form, { url: made.url, fields: made.fields, body, name: "f" });
  equal(form, FAILED, `a form, ${what}`);
  await send("DeleteObject", { Bucket: bucket, Key: "form" });
  const opaque = await page.evaluate(inPage.ask, { url: get, method: "GET", mode: "no-cors" });
  equal([opaque.status, opaque.body, opaque.headers], [0, "", {}], `without CORS, ${what}`);
}

async function withoutRulesAllFails({ page, bucket, origin }) {
  await allFails(page, bucket, "without rules");
  await allow(bucket, RULES(origin));
  const url = await sign("GetObject", { Bucket: bucket, Key: "there" });
  equal((await page.evaluate(inPage.ask, { url, method: "GET" })).status, 200, "with rules");
  await send("DeleteBucketCors", { Bucket: bucket });
  await allFails(page, bucket, "after the rules were deleted");
}

async function anotherOriginFails({ page, stranger, bucket, origin }) {
  await allow(bucket, RULES(origin));
  await allFails(stranger, bucket, "of another origin");
  await allow(bucket, RULES(origin.replace("127.0.0.1", "127.*")));
  const url = await sign("GetObject", { Bucket: bucket, Key: "there" });
  equal((await page.evaluate(inPage.ask, { url, method: "GET" })).status, 200, "a pattern");
  await allFails(stranger, bucket, "of an origin that is not of the pattern");
  await allow(bucket, RULES("*"));
  equal((await stranger.evaluate(inPage.ask, { url, method: "GET" })).status, 200, "every origin");
}

async function otherMethodsAndHeadersFail({ page, bucket, origin }) {
  await allow(bucket, RULES(origin, { AllowedMethods: ["GET"] }));
  const k = { Bucket: bucket, Key: "k" };
  await send("PutObject", { ...k, Body: "there" });
  const put = await sign("PutObject", k);
  const body = randomBytes(10).toString("base64");
  equal(
    await page.evaluate(inPage.ask, { url: put, method: "PUT", body }),
    FAILED,
    "PUT, where GET is allowed",
  );
  const drop = await sign("DeleteObject", k);
  equal(
    await page.evaluate(inPage.ask, { url: drop, method: "DELETE" }),
    FAILED,
    "DELETE, where GET is allowed",
  );
  await allow(bucket, RULES(origin, { AllowedHeaders: ["content-type"] }));
  const meta = await sign("PutObject", { ...k, Metadata: { who: "x" } });
  const headers = { "x-amz-meta-who": "x" };
  equal(
    await page.evaluate(inPage.ask, { url: meta, method: "PUT", headers, body }),
    FAILED,
    "a header of no rule",
  );
  equal((await stored(bucket, "k")).toString(), "there", "the object");
  await allow(bucket, RULES(origin, { ExposeHeaders: undefined }));
  const got = await page.evaluate(inPage.ask, { url: await sign("GetObject", k), method: "GET" });
  equal([got.status, got.headers.etag], [200, undefined], "an ETag that is not exposed");
  // Two rules: each is good for its own.
  await allow(
    bucket,
    RULES("https://other.example"),
    RULES(origin, { AllowedMethods: ["PUT"], AllowedHeaders: ["*"] }),
  );
  equal(
    (await page.evaluate(inPage.ask, { url: meta, method: "PUT", headers, body })).status,
    200,
    "the second rule",
  );
  const get = await sign("GetObject", k);
  equal(
    await page.evaluate(inPage.ask, { url: get, method: "GET" }),
    FAILED,
    "GET, which only the other origin may",
  );
}

const site = createServer((request, response) => {
  response.setHeader("content-type", "text/html; charset=utf-8");
  response.end("<!doctype html><title>a page</title><link rel=icon href=data:,>");
});
await new Promise((listening) => site.listen(0, "127.0.0.1", listening));
const { port } = site.address();
// Loopback by two names: two origins.
const [origin, strange] = [`http://127.0.0.1:${port}`, `http://localhost:${port}`];
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP localhost 127.0.0.1"],
});
const checks = [
  uploadAndReadBack,
  refusalsAreReadable,
  forms,
  aFormThatIsSubmitted,
  uploadsInParts,
  withoutRulesAllFails,
  anotherOriginFails,
  otherMethodsAndHeadersFail,
];
const failed = [];
let current;
const watch = setTimeout(() => {
  console.log(`FAILED  ${current} is still running after two minutes`);
  browser.close().finally(() => process.exit(1));
}, 120_000);
try {
  for (const [number, check] of checks.entries()) {
    const bucket = `browser-${number}`;
    const started = Date.now();
    current = check.name;
    try {
      await send("CreateBucket", { Bucket: bucket });
      const [page, stranger] = [await pageAt(browser, origin), await pageAt(browser, strange)];
      await check({ page, stranger, bucket, origin });
      await page.context().close();
      await stranger.context().close();
      console.log(`ok      ${check.name} (${Date.now() - started} ms)`);
    } catch (error) {
      failed.push(check.name);
      console.log(`FAILED  ${check.name}\n${error.stack}`);
    }
  }
} finally {
  clearTimeout(watch);
  await browser.close();
  site.close();
  site.closeAllConnections();
  s3.destroy();
}
if (failed.length) {
  console.log(`${failed.length} of ${checks.length} failed: ${failed.join(", ")}`);
  process.exitCode = 1;
}
